"""One connection to the fake broker: it can be cut and healed, and every request checks it with `require_connected`."""

from collections import deque
from collections.abc import AsyncIterator, Callable

import anyio.lowlevel

from bus.health import BrokerBacklog, BrokerStatus
from bus.interface import BrokerUnreachable, Lane
from bus.notifier import Notifier
from schemas.job import JobKey
from tests.support.fake_bus.stream import Clock, FakeMessage, FakeStream


class FakeConnection:
    """`status`, `backlog`: what the broker answers."""

    def __init__(self, clock: Clock, status: Callable[[], BrokerStatus], backlog: Callable[[], BrokerBacklog]) -> None:
        self._clock = clock
        self._status = status
        self._backlog = backlog
        self._since = clock()
        self._is_up = True
        self._changed = Notifier()
        self.fault = ""
        self.reconnect_count = 0
        self.woken_lanes: set[Lane] = set()
        self.pending_nudges: dict[str, deque[JobKey]] = {}

    @property
    def is_connected(self) -> bool:
        """Whether the connection is up."""
        return self._is_up

    async def require_connected(self) -> None:
        """Raise BrokerUnreachable while the connection is cut."""
        await anyio.lowlevel.checkpoint()
        if not self.is_connected:
            raise BrokerUnreachable("the broker does not answer: trying again until it does")

    async def status(self) -> BrokerStatus:
        """Return the broker's status."""
        await self.require_connected()
        return self._status()

    async def backlog(self) -> BrokerBacklog:
        """Return what waits in the broker."""
        await self.require_connected()
        return self._backlog()

    def uptime_s(self) -> float:
        """Return the seconds of the broker's clock since the connection came up; 0 while it is cut."""
        return self._clock() - self._since if self.is_connected else 0.0

    async def reconnects(self) -> AsyncIterator[None]:
        """Yield once for each time it was healed."""
        seen = self.reconnect_count
        while True:
            while seen < self.reconnect_count:
                seen += 1
                yield
            await self._changed.wait()

    async def tail(self, log: FakeStream, after: int, prefix: str) -> AsyncIterator[FakeMessage | None]:
        """Yield everything after `after`, without end, across cuts; None each time the end is reached."""
        while True:
            await self._wait_until_up()
            for message in log.messages_after(after, prefix):
                await self._wait_until_up()
                after = message.sequence
                yield message
            grown = log.grown.next_notification()
            yield None
            if not log.messages_after(after, prefix):
                await grown.wait()

    async def _wait_until_up(self) -> None:
        await self._changed.wait_until(lambda: self._is_up)

    async def wait_until_changed(self) -> None:
        """Return when a wake, a nudge or a heal arrives."""
        await self._changed.wait()

    def notify(self) -> None:
        """Wake the tasks that wait in `wait_until_changed`."""
        self._changed.notify()

    def cut(self) -> None:
        """Cut the connection."""
        if self.is_connected:
            self._is_up = False
            self.woken_lanes.clear()

    def heal(self) -> None:
        """Connect again."""
        if not self.is_connected:
            self._since = self._clock()
            self.reconnect_count += 1
            self._is_up = True
            self.notify()
