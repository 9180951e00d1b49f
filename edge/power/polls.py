"""What the switches say, asked while it matters: not of a host that beats, and not of one that is known to be off."""

from collections.abc import Callable, Mapping

import anyio
from anyio.abc import TaskGroup

from edge.power.calls import ask
from edge.power.drivers.port import Driver
from edge.power.observer import state_key
from schemas.power import PowerRecord, PowerState, Provider
from schemas.switch import HostDeclaration

POLL_S = 5.0

Current = Callable[[str], tuple[PowerRecord, bool] | None]


class Polls:
    """`current` gives a host's record and whether its runner beats; `told` is called when a switch has said something.

    A word counts only for the state in which it was asked: what was off before the start is no proof of anything.
    """

    def __init__(
        self,
        declared: Mapping[str, HostDeclaration],
        drivers: Mapping[str, Driver],
        current: Current,
        told: Callable[[], None],
        period_s: float = POLL_S,
    ) -> None:
        self._declared = declared
        self._drivers = drivers
        self._current = current
        self._told = told
        self._period_s = period_s
        self._words: dict[str, tuple[object, Provider]] = {}
        self._hurry = {host: anyio.Event() for host in drivers}

    def start(self, tasks: TaskGroup) -> None:
        """One task a host that can tell, so that a slow switch delays no other."""
        for host, driver in self._drivers.items():
            if driver.tells:
                tasks.start_soon(self._run, host)

    def word(self, host: str, record: PowerRecord) -> Provider:
        """What the switch last said of the host as it stands, UNKNOWN when it has not."""
        key, word = self._words.get(host, (None, Provider.UNKNOWN))
        return word if key == state_key(record) else Provider.UNKNOWN

    def hurry(self, host: str) -> None:
        """The host has changed: ask now."""
        self._hurry[host].set()

    async def _run(self, host: str) -> None:
        while True:
            await self.poll(host)
            with anyio.move_on_after(self._period_s):
                await self._hurry[host].wait()
            self._hurry[host] = anyio.Event()

    async def poll(self, host: str) -> None:
        """Ask once, if it matters."""
        current = self._current(host)
        if current is None or not self._drivers[host].tells:
            return
        record, beats = current
        if record.state is PowerState.OFF or (beats and record.state is PowerState.ONLINE):
            self._words.pop(host, None)
            return
        word = await ask(self._drivers[host], self._declared[host].timeout)
        self._words[host] = state_key(record), word
        self._told()
