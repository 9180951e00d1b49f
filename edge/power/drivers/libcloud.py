"""Power driver for clouds, by apache-libcloud: `start_node` and `stop_node` of any provider that supports them.

libcloud blocks and keeps one connection per object, so every call makes its own connection in a thread. Its providers
have common states, but no common errors. "No capacity" is recognized by the codes below anywhere in the message.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

from anyio import to_thread
from libcloud.common.types import InvalidCredsError
from libcloud.compute.base import Node, NodeDriver
from libcloud.compute.providers import get_driver
from libcloud.compute.types import NodeState

from schemas.host_config import LibcloudHostConfig
from schemas.power import NoCapacity, PowerCallFailed, PowerDriver, ReportedPower

T = TypeVar("T")

REPORTED_BY_NODE_STATE: Mapping[str, ReportedPower] = {
    NodeState.RUNNING: ReportedPower.ON,
    NodeState.STARTING: ReportedPower.STARTING,
    NodeState.PENDING: ReportedPower.STARTING,
    NodeState.REBOOTING: ReportedPower.STARTING,
    NodeState.STOPPING: ReportedPower.STOPPING,
    NodeState.STOPPED: ReportedPower.OFF,
    NodeState.SUSPENDED: ReportedPower.OFF,
    NodeState.PAUSED: ReportedPower.OFF,
    NodeState.TERMINATED: ReportedPower.ERROR,
    NodeState.ERROR: ReportedPower.ERROR,
}

# Error codes of AWS, Google Cloud and Azure, from their references.
NO_CAPACITY_CODES = (
    "InsufficientInstanceCapacity",
    "InsufficientHostCapacity",
    "InsufficientCapacity",
    "ZONE_RESOURCE_POOL_EXHAUSTED",
    "AllocationFailed",
    "SkuNotAvailable",
    "OverconstrainedAllocationRequest",
)


class LibcloudDriver(PowerDriver):
    """Controls one node of a provider. `environ`: holds the credentials that the host's settings name."""

    def __init__(self, declared: LibcloudHostConfig, environ: Mapping[str, str]) -> None:
        self._declared = declared
        self._environ = environ

    @property
    def can_report_state(self) -> bool:
        return True

    async def start(self, call_id: str) -> None:
        """Start the node. Raises PowerCallFailed while it is stopping; the call is then repeated."""
        await self._in_thread(self._start_node)

    async def stop(self, call_id: str) -> None:
        await self._in_thread(self._stop_node)

    async def state(self) -> ReportedPower:
        return await self._in_thread(lambda cloud: _reported_power(self._find_node(cloud)))

    def _start_node(self, cloud: NodeDriver) -> None:
        node = self._find_node(cloud)
        state = _reported_power(node)
        if state is ReportedPower.STOPPING:
            raise PowerCallFailed(f"{node.id} is still stopping: the call is repeated later")
        if state not in {ReportedPower.ON, ReportedPower.STARTING} and not cloud.start_node(node):
            raise PowerCallFailed(
                f"{self._declared.provider} did not start {node.id}: check it in the provider's console"
            )

    def _stop_node(self, cloud: NodeDriver) -> None:
        node = self._find_node(cloud)
        if _reported_power(node) not in {ReportedPower.OFF, ReportedPower.STOPPING} and not cloud.stop_node(node):
            raise PowerCallFailed(
                f"{self._declared.provider} did not stop {node.id}: check it in the provider's console"
            )

    def _find_node(self, cloud: NodeDriver) -> Node:
        found = next((node for node in cloud.list_nodes() if node.id == self._declared.node), None)
        if found is None:
            raise PowerCallFailed(f"{self._declared.provider} has no node {self._declared.node}: correct `node`")
        return found

    async def _in_thread(self, ask: Callable[[NodeDriver], T]) -> T:
        # A thread whose call timed out is abandoned. The next call reads the state first.
        return await to_thread.run_sync(lambda: self._call_cloud(ask), abandon_on_cancel=True)

    def _call_cloud(self, ask: Callable[[NodeDriver], T]) -> T:
        try:
            return ask(self._connect())
        except PowerCallFailed:
            raise
        except InvalidCredsError as error:
            raise PowerCallFailed(f"{self._declared.provider} rejects the key in {self._declared.key_env}") from error
        except Exception as error:  # libcloud may raise anything: ValueError for a region, for example
            raise self._to_error(str(error) or type(error).__name__) from error

    def _to_error(self, message: str) -> PowerCallFailed:
        text = f"{self._declared.provider}: {' '.join(message.split())}"
        return NoCapacity(text) if any(code in message for code in NO_CAPACITY_CODES) else PowerCallFailed(text)

    def _connect(self) -> NodeDriver:
        declared = self._declared
        secret = [] if declared.secret_env is None else [self._secret(declared.secret_env)]
        return get_driver(declared.provider)(self._secret(declared.key_env), *secret, **declared.options)

    def _secret(self, name: str) -> str:
        value = self._environ.get(name)
        if not value:
            raise PowerCallFailed(f"the variable {name} is not set: put the cloud's key there")
        return value


def _reported_power(node: Node) -> ReportedPower:
    return REPORTED_BY_NODE_STATE.get(node.state, ReportedPower.UNKNOWN)
