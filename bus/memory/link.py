"""One connection to the fake: it can be cut and healed, and everything asked over it goes through `reach`."""

from collections import deque
from collections.abc import AsyncIterator, Callable

import anyio
import anyio.lowlevel

from bus.memory.log import Clock, Log, Message
from bus.port import Health, Lane, Unreachable
from schemas.job import JobKey


class MemoryLink:
    """`health` says what the broker would answer."""

    def __init__(self, clock: Clock, health: Callable[[], Health]) -> None:
        self._clock = clock
        self._health = health
        self._since = clock()
        self._up = anyio.Event()
        self._up.set()
        self._changed = anyio.Event()
        self.trouble = ""
        self.comebacks = 0
        self.woken: set[Lane] = set()
        self.nudged: dict[str, deque[JobKey]] = {}

    @property
    def connected(self) -> bool:
        """Whether the connection stands now."""
        return self._up.is_set()

    async def reach(self) -> None:
        """Pass, or raise Unreachable while the connection is cut."""
        await anyio.lowlevel.checkpoint()
        if not self.connected:
            raise Unreachable("the broker is away: it is asked again when it comes back")

    async def health(self) -> Health:
        """What the broker says of itself."""
        await self.reach()
        return self._health()

    def unbroken_s(self) -> float:
        """Seconds of the broker's clock since the connection came up; 0 while it is cut."""
        return self._clock() - self._since if self.connected else 0.0

    async def reconnects(self) -> AsyncIterator[None]:
        """One item for each time it healed."""
        seen = self.comebacks
        while True:
            while seen < self.comebacks:
                seen += 1
                yield
            await self._changed.wait()

    async def tail(self, log: Log, after: int, prefix: str) -> AsyncIterator[Message | None]:
        """Everything behind `after`, without end, also over a cut; None each time nothing more is there."""
        while True:
            await self._up.wait()
            for message in log.behind(after, prefix):
                await self._up.wait()
                after = message.sequence
                yield message
            grown = log.grown
            yield None
            if not log.behind(after, prefix):
                await grown.wait()

    async def changed(self) -> None:
        """Return when a wake, a nudge or a heal arrives."""
        await self._changed.wait()

    def tell(self) -> None:
        """Wake whoever waits in `changed`."""
        self._changed.set()
        self._changed = anyio.Event()

    def cut(self) -> None:
        """The broker is out of reach from now on."""
        if self.connected:
            self._up = anyio.Event()
            self.woken.clear()

    def heal(self) -> None:
        """The broker is back."""
        if not self.connected:
            self._since = self._clock()
            self.comebacks += 1
            self._up.set()
            self.tell()
