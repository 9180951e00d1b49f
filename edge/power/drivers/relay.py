"""The switch behind a relay: a client of the gateway on the host's own network that presses it there (PROTOCOLS 2)."""

from typing import Protocol

from edge.power.drivers.port import PowerCallFailed, PowerDriver, PowerDriverReply, require_capacity
from schemas.power import ReportedPower


class RelayUnavailable(Exception):
    """No relay that knows the host is connected."""


class PowerRelay(Protocol):
    """The gateway's side: who of the connected relays is asked is its affair."""

    async def request(self, kind: str, host: str, call_id: str) -> PowerDriverReply:
        """Send `kind` (`gpu.power.start|stop|state`) and wait for the answer. Raises RelayAway."""
        ...


class RelayDriver(PowerDriver):
    """`host` is the relay's name for it. A question has no call, so its id is empty."""

    def __init__(self, relay: PowerRelay, host: str) -> None:
        self._relay = relay
        self._host = host

    @property
    def can_report_state(self) -> bool:
        return True

    async def start(self, call_id: str) -> None:
        await self._request("gpu.power.start", call_id)

    async def stop(self, call_id: str) -> None:
        await self._request("gpu.power.stop", call_id)

    async def state(self) -> ReportedPower:
        return (await self._request("gpu.power.state", "")).state

    async def _request(self, kind: str, call_id: str) -> PowerDriverReply:
        try:
            return require_capacity(await self._relay.request(kind, self._host, call_id))
        except RelayUnavailable as error:
            raise PowerCallFailed(f"no relay is connected for {self._host}: start `lamplighter relay` there") from error
