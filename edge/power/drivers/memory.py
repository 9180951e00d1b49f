"""A machine that is only pretended: the port's fake, with a boot and a shutdown that the test ends."""

from anyio.lowlevel import checkpoint

from edge.power.drivers.port import Driver, NoCapacity, SwitchFailed
from schemas.power import Provider


class MemoryDriver(Driver):
    """`slow`: orders leave it starting or stopping until `settle`. `calls` are those that were made, in order."""

    def __init__(self, *, tells: bool = True, slow: bool = False) -> None:
        self._tells = tells
        self._slow = slow
        self.power = Provider.OFF
        self.calls: list[tuple[str, str]] = []
        self.sold_out = 0
        self.broken = False

    @property
    def tells(self) -> bool:
        return self._tells

    async def start(self, call_id: str) -> None:
        await self._ask("start", call_id)
        if self.sold_out:
            self.sold_out -= 1
            raise NoCapacity("no machine is free: it is tried again")
        if self.power not in {Provider.ON, Provider.STARTING}:
            self.power = Provider.STARTING if self._slow else Provider.ON

    async def stop(self, call_id: str) -> None:
        await self._ask("stop", call_id)
        if self.power not in {Provider.OFF, Provider.STOPPING}:
            self.power = Provider.STOPPING if self._slow else Provider.OFF

    async def state(self) -> Provider:
        await checkpoint()
        self._check()
        return self.power if self._tells else Provider.UNKNOWN

    def settle(self) -> None:
        """The boot or the shutdown is over."""
        self.power = {Provider.STARTING: Provider.ON, Provider.STOPPING: Provider.OFF}.get(self.power, self.power)

    async def _ask(self, verb: str, call_id: str) -> None:
        await checkpoint()
        self.calls.append((verb, call_id))
        self._check()

    def _check(self) -> None:
        if self.broken:
            raise SwitchFailed("the switch is broken: mend it")
