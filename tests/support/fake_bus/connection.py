"""One connection to the fake: it can be cut and healed, and everything asked over it goes through `reach`."""

from collections import deque
from collections.abc import AsyncIterator, Callable

import anyio
import anyio.lowlevel

from bus.interface import BrokerStatus, BrokerUnreachable, Lane
from schemas.ids import JobKey
from tests.support.fake_bus.stream import Clock, FakeMessage, FakeStream


class FakeConnection:
    """`health` says what the broker would answer."""

    def __init__(self, clock: Clock, health: Callable[[], BrokerStatus]) -> None:
        self._clock = clock
        self._health = health
        self._since = clock()
        self._up = anyio.Event()
        self._up.set()
        self._changed = anyio.Event()
        self.fault = ""
        self.reconnect_count = 0
        self.woken_lanes: set[Lane] = set()
        self.pending_nudges: dict[str, deque[JobKey]] = {}

    @property
    def is_connected(self) -> bool:
        """Whether the connection stands now."""
        return self._up.is_set()

    async def require_connected(self) -> None:
        """Pass, or raise Unreachable while the connection is cut."""
        await anyio.lowlevel.checkpoint()
        if not self.is_connected:
            raise BrokerUnreachable("the broker is away: it is asked again when it comes back")

    async def status(self) -> BrokerStatus:
        """What the broker says of itself."""
        await self.require_connected()
        return self._health()

    def uptime_s(self) -> float:
        """Seconds of the broker's clock since the connection came up; 0 while it is cut."""
        return self._clock() - self._since if self.is_connected else 0.0

    async def reconnects(self) -> AsyncIterator[None]:
        """One item for each time it healed."""
        seen = self.reconnect_count
        while True:
            while seen < self.reconnect_count:
                seen += 1
                yield
            await self._changed.wait()

    async def tail(self, log: FakeStream, after: int, prefix: str) -> AsyncIterator[FakeMessage | None]:
        """Everything behind `after`, without end, also over a cut; None each time nothing more is there."""
        while True:
            await self._up.wait()
            for message in log.messages_after(after, prefix):
                await self._up.wait()
                after = message.sequence
                yield message
            grown = log.grown
            yield None
            if not log.messages_after(after, prefix):
                await grown.wait()

    async def wait_until_changed(self) -> None:
        """Return when a wake, a nudge or a heal arrives."""
        await self._changed.wait()

    def notify(self) -> None:
        """Wake whoever waits in `changed`."""
        self._changed.set()
        self._changed = anyio.Event()

    def cut(self) -> None:
        """The broker is out of reach from now on."""
        if self.is_connected:
            self._up = anyio.Event()
            self.woken_lanes.clear()

    def heal(self) -> None:
        """The broker is back."""
        if not self.is_connected:
            self._since = self._clock()
            self.reconnect_count += 1
            self._up.set()
            self.notify()
