"""The switch of a cloud, by apache-libcloud: `start_node` and `stop_node` of any provider that has them.

libcloud blocks and keeps one connection an object, so every call makes its own in a thread. Its providers agree on
states, not on errors: what says "no capacity" is found by the codes below, wherever they stand in the message.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

from anyio import to_thread
from libcloud.common.types import InvalidCredsError
from libcloud.compute.base import Node, NodeDriver
from libcloud.compute.providers import get_driver
from libcloud.compute.types import NodeState

from edge.power.drivers.port import Driver, NoCapacity, SwitchFailed
from schemas.power import Provider
from schemas.switch import LibcloudHost

T = TypeVar("T")

STATES: Mapping[str, Provider] = {
    NodeState.RUNNING: Provider.ON,
    NodeState.STARTING: Provider.STARTING,
    NodeState.PENDING: Provider.STARTING,
    NodeState.REBOOTING: Provider.STARTING,
    NodeState.STOPPING: Provider.STOPPING,
    NodeState.STOPPED: Provider.OFF,
    NodeState.SUSPENDED: Provider.OFF,
    NodeState.PAUSED: Provider.OFF,
    NodeState.TERMINATED: Provider.ERROR,
    NodeState.ERROR: Provider.ERROR,
}

# AWS, Google and Azure, as their references of error codes name it.
SOLD_OUT = (
    "InsufficientInstanceCapacity",
    "InsufficientHostCapacity",
    "InsufficientCapacity",
    "ZONE_RESOURCE_POOL_EXHAUSTED",
    "AllocationFailed",
    "SkuNotAvailable",
    "OverconstrainedAllocationRequest",
)


class LibcloudDriver(Driver):
    """One machine of a provider; `environ` holds the credentials that the declaration names."""

    def __init__(self, declared: LibcloudHost, environ: Mapping[str, str]) -> None:
        self._declared = declared
        self._environ = environ

    @property
    def tells(self) -> bool:
        return True

    async def start(self, call_id: str) -> None:
        """A machine that is stopping cannot be started yet: SwitchFailed, and it is tried again."""
        await self._in_thread(self._start)

    async def stop(self, call_id: str) -> None:
        await self._in_thread(self._stop)

    async def state(self) -> Provider:
        return await self._in_thread(lambda cloud: _state(self._node(cloud)))

    def _start(self, cloud: NodeDriver) -> None:
        node = self._node(cloud)
        state = _state(node)
        if state is Provider.STOPPING:
            raise SwitchFailed(f"{node.id} is still stopping: it is tried again")
        if state not in {Provider.ON, Provider.STARTING} and not cloud.start_node(node):
            raise SwitchFailed(f"{self._declared.provider} did not start {node.id}: look at its console")

    def _stop(self, cloud: NodeDriver) -> None:
        node = self._node(cloud)
        if _state(node) not in {Provider.OFF, Provider.STOPPING} and not cloud.stop_node(node):
            raise SwitchFailed(f"{self._declared.provider} did not stop {node.id}: look at its console")

    def _node(self, cloud: NodeDriver) -> Node:
        found = next((node for node in cloud.list_nodes() if node.id == self._declared.node), None)
        if found is None:
            raise SwitchFailed(f"{self._declared.provider} has no node {self._declared.node}: correct `node`")
        return found

    async def _in_thread(self, ask: Callable[[NodeDriver], T]) -> T:
        # Nobody waits for a thread whose call took too long; the next call asks for the state first.
        return await to_thread.run_sync(lambda: self._asked(ask), abandon_on_cancel=True)

    def _asked(self, ask: Callable[[NodeDriver], T]) -> T:
        try:
            return ask(self._cloud())
        except SwitchFailed:
            raise
        except InvalidCredsError as error:
            raise SwitchFailed(f"{self._declared.provider} refuses the key in {self._declared.key_env}") from error
        except Exception as error:  # the border: ValueError for a region, AttributeError for a provider, and so on
            raise self._failure(str(error) or type(error).__name__) from error

    def _failure(self, message: str) -> SwitchFailed:
        said = f"{self._declared.provider}: {' '.join(message.split())}"
        return NoCapacity(said) if any(code in message for code in SOLD_OUT) else SwitchFailed(said)

    def _cloud(self) -> NodeDriver:
        declared = self._declared
        secret = [] if declared.secret_env is None else [self._secret(declared.secret_env)]
        return get_driver(declared.provider)(self._secret(declared.key_env), *secret, **declared.options)

    def _secret(self, name: str) -> str:
        value = self._environ.get(name)
        if not value:
            raise SwitchFailed(f"the variable {name} is not set: put the cloud's key there")
        return value


def _state(node: Node) -> Provider:
    return STATES.get(node.state, Provider.UNKNOWN)
