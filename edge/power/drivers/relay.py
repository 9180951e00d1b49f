"""The switch behind a relay: a client of the gateway on the host's own network that presses it there (PROTOCOLS 2)."""

from typing import Protocol

from edge.power.drivers.port import Driver, SwitchFailed
from edge.power.drivers.reply import SwitchReply, checked
from schemas.power import Provider


class RelayAway(Exception):
    """No relay that knows the host is connected."""


class Relay(Protocol):
    """The gateway's side: who of the connected relays is asked is its affair."""

    async def ask(self, kind: str, host: str, call_id: str) -> SwitchReply:
        """Send `kind` (`gpu.power.start|stop|state`) and wait for the answer. Raises RelayAway."""
        ...


class RelayDriver(Driver):
    """`host` is the relay's name for it. A question has no call, so its id is empty."""

    def __init__(self, relay: Relay, host: str) -> None:
        self._relay = relay
        self._host = host

    @property
    def tells(self) -> bool:
        return True

    async def start(self, call_id: str) -> None:
        await self._ask("gpu.power.start", call_id)

    async def stop(self, call_id: str) -> None:
        await self._ask("gpu.power.stop", call_id)

    async def state(self) -> Provider:
        return (await self._ask("gpu.power.state", "")).state

    async def _ask(self, kind: str, call_id: str) -> SwitchReply:
        try:
            return checked(await self._relay.ask(kind, self._host, call_id))
        except RelayAway as error:
            raise SwitchFailed(f"no relay is connected for {self._host}: start `lamplighter relay` there") from error
