"""JOBS in memory: leases instead of a broker's acknowledgements."""

from collections.abc import Collection, Iterator

import anyio

from bus import subjects
from bus.memory.link import MemoryLink
from bus.memory.log import Clock, Log
from bus.port import Delivery, Lane
from schemas.job import Pointer
from schemas.words import PRIORITIES, Priority

ACK_WAIT_S = 30.0


class Jobs:
    """What every connection shares of JOBS: the stream, its lanes, until when each message is handed out."""

    def __init__(self, clock: Clock, log: Log) -> None:
        self.clock = clock
        self.log = log
        self.lanes: set[str] = set()
        self.due: dict[int, float] = {}
        self.links: list[MemoryLink] = []

    def drop(self, sequence: int) -> None:
        """Gone for good."""
        self.log.erase(sequence)
        self.due.pop(sequence, None)


class MemoryDelivery:
    """A lease on one message."""

    def __init__(self, link: MemoryLink, jobs: Jobs, pointer: Pointer, sequence: int) -> None:
        self._link = link
        self._jobs = jobs
        self.pointer = pointer
        self.sequence = sequence

    async def extend(self) -> None:
        """30 s from now."""
        await self._put_off(ACK_WAIT_S)

    async def done(self) -> None:
        """Gone for good."""
        await self._link.reach()
        self._jobs.drop(self.sequence)

    async def later(self, delay_s: float) -> None:
        """Again in `delay_s`."""
        await self._put_off(delay_s)

    async def _put_off(self, seconds: float) -> None:
        await self._link.reach()
        self._jobs.due[self.sequence] = self._jobs.clock() + seconds


class MemoryQueue:
    """Pointers that wait."""

    def __init__(self, link: MemoryLink, jobs: Jobs) -> None:
        self._link = link
        self._jobs = jobs

    async def ensure(self, pools: Collection[str]) -> None:
        """A lane for every priority of `pools`."""
        await self._link.reach()
        self._jobs.lanes.update(subjects.lane(pool, priority) for pool in pools for priority in PRIORITIES)

    async def publish(self, pointer: Pointer, *, repair: bool = False) -> None:
        """Let it wait, wake its lane."""
        await self._link.reach()
        subject = subjects.pointer(pointer)
        self._jobs.log.append(subject, b"", message_id=None if repair else subject)
        for link in self._jobs.links:
            if link.connected:
                link.woken.add(Lane(pointer.pool, pointer.priority))
                link.tell()

    async def take(self, pool: str, priority: Priority, wait_s: float = 0.0) -> Delivery | None:
        """The oldest that nobody holds."""
        await self._link.reach()
        found = self._take(pool, priority)
        with anyio.move_on_after(wait_s):
            while found is None:
                await self._link.changed()
                await self._link.reach()
                found = self._take(pool, priority)
        return found

    def _take(self, pool: str, priority: Priority) -> Delivery | None:
        if subjects.lane(pool, priority) not in self._jobs.lanes:
            return None
        now = self._jobs.clock()
        for sequence, pointer in self._pointers(f"job.{pool}.{priority}."):
            if self._jobs.due.get(sequence, now) <= now:
                self._jobs.due[sequence] = now + ACK_WAIT_S
                return MemoryDelivery(self._link, self._jobs, pointer, sequence)
        return None

    def _pointers(self, prefix: str) -> Iterator[tuple[int, Pointer]]:
        for message in self._jobs.log.behind(0, prefix):
            pointer = subjects.parse_pointer(message.subject)
            if pointer is not None:
                yield message.sequence, pointer

    async def withdraw(self, pointer: Pointer) -> None:
        """Remove that round's message."""
        await self._link.reach()
        for message in self._jobs.log.of(subjects.pointer(pointer)):
            self._jobs.drop(message.sequence)

    async def waiting(self, owner: str | None = None) -> set[Pointer]:
        """Every pointer held."""
        await self._link.reach()
        return {pointer for _, pointer in self._pointers("job.") if owner in (None, pointer.owner)}

    async def woken(self, pools: Collection[str], timeout_s: float) -> frozenset[Lane]:
        """Wait for a wake of `pools`; one that came since the last call counts."""
        with anyio.move_on_after(timeout_s):
            while not any(lane.pool in pools for lane in self._link.woken):
                await self._link.changed()
        heard = frozenset(lane for lane in self._link.woken if lane.pool in pools)
        self._link.woken -= heard
        return heard
