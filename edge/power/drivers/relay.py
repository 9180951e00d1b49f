"""Power driver that forwards calls to a relay: a gateway client on the host's network that makes them there."""

from typing import Protocol

from schemas.power import ReportedPower
from schemas.power_driver import PowerCallFailed, PowerDriver, PowerDriverReply, require_capacity


class RelayUnavailable(Exception):
    """No relay that knows the host is connected."""


class PowerRelay(Protocol):
    """Sends requests to the connected relays. `edge.power.relay_hub.RelayHub` implements it."""

    async def request(self, kind: str, host: str, call_id: str) -> PowerDriverReply:
        """Send `kind` (`gpu.power.start|stop|state`) and wait for the reply. Raises RelayUnavailable."""
        ...


class RelayDriver(PowerDriver):
    """Sends power calls through `relay`. `host`: its name at the relay. A state request has an empty call id.

    `wake_only`: the relay only starts the host, and cannot tell its state.
    """

    def __init__(self, relay: PowerRelay, host: str, *, wake_only: bool = False) -> None:
        self._relay = relay
        self._host = host
        self._wake_only = wake_only

    @property
    def can_report_state(self) -> bool:
        return not self._wake_only

    async def start(self, call_id: str) -> None:
        await self._request("gpu.power.start", call_id)

    async def stop(self, call_id: str) -> None:
        """Ask the relay to stop the host. With `wake_only` the runner reads in the host's record that it must."""
        if not self._wake_only:
            await self._request("gpu.power.stop", call_id)

    async def state(self) -> ReportedPower:
        return (await self._request("gpu.power.state", "")).state

    async def _request(self, kind: str, call_id: str) -> PowerDriverReply:
        try:
            return require_capacity(await self._relay.request(kind, self._host, call_id))
        except RelayUnavailable as error:
            raise PowerCallFailed(f"no relay is connected for {self._host}: start `lamplighter relay` there") from error
