"""Who may stand in JOBS: per owner, pool and priority a bounded window of pointers, so that a thousand jobs of one
owner stand at most one window ahead of another's one (DESIGN 3, "Window and quotas")."""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import zip_longest

import structlog
from anyio import Event, create_task_group
from anyio.abc import TaskGroup

from bus.port import BusError, Queue, Records
from edge.services.clock import Clock, micros
from edge.services.index import Index
from edge.services.lines import Line
from edge.services.standing import Standing, Step
from schemas.errors import Refused
from schemas.events import RecordUnreadable
from schemas.job import Job, JobKey, Pointer
from schemas.words import ACTIVE, FINAL, PRIORITIES, Status

LEAST = 8
PER_SLOT = 4

_log = structlog.get_logger()


def _any_number(_: str) -> int:
    """No owner is limited."""
    return 0


class Window:
    """Counts the pointers in JOBS, its own publishes at once, and moves jobs up when one ends.

    `slots` tells the slots last offered to a pool; `running` how many of an owner's jobs may run (0: any number): no
    more of them stand in JOBS, over all lines, those in back-off too. Until the first `sync` it publishes nothing: it
    cannot know yet what is there. A publish that fails is not tried again here; the reconciler's next `sync` finds it
    missing.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what it works with, and two bounds
        self,
        queue: Queue,
        records: Records,
        index: Index,
        slots: Callable[[str], int],
        clock: Clock,
        running: Callable[[str], int] = _any_number,
    ) -> None:
        self._queue = queue
        self._records = records
        self._index = index
        self._slots = slots
        self._clock = clock
        self._running = running
        self._held: defaultdict[Line, dict[Pointer, int | None]] = defaultdict(dict)  # None: its publish is under way
        self._resting: set[Pointer] = set()
        self._lost: set[Pointer] = set()
        self._published = 0
        self._synced = False
        self._short: set[Line] = set()
        self._woken = Event()
        self._tasks: TaskGroup | None = None
        self._sending = 0
        self._sent = Event()
        index.watch(self._see)

    def span(self, pool: str) -> int:
        """How many pointers an owner may have there in each priority."""
        return max(LEAST, PER_SLOT * self._slots(pool))

    def holds(self, pointer: Pointer) -> bool:
        """Whether the job stands in JOBS, as far as this edge knows."""
        return pointer in self._held.get(_line(pointer), ()) or pointer in self._resting

    def has_room(self, job: Job) -> bool:
        """Whether the job's line may have one more pointer there: if so, nothing but a moment keeps it out."""
        return self._room(_line(job.pointer)) > 0

    async def offer(self, job: Job) -> bool:
        """Publish the job's pointer if it is queued and there is room; whether it stands in JOBS now."""
        pointer = job.pointer
        if self.holds(pointer):
            return True
        if job.status is not Status.QUEUED or not self._synced or not self._room(_line(pointer)):
            return False
        return await self._publish(pointer)

    def send(self, job: Job) -> None:
        """`offer` without waiting for it: a submit is answered as soon as the record is durable.

        What is cut off between the two is found by the reconciler.
        """
        if self._tasks is not None:
            self._sending += 1
            self._tasks.start_soon(self._send, job)

    async def _send(self, job: Job) -> None:
        try:
            await self.offer(job)
        finally:
            self._sending -= 1
            if not self._sending:
                self._sent.set()
                self._sent = Event()

    async def idle(self) -> None:
        """Wait until everything sent has been published, or put off."""
        while self._sending:
            await self._sent.wait()

    def mark(self) -> int:
        """A point in time for `sync`: take it before JOBS is read."""
        return self._published

    def sync(self, seen: Collection[Pointer], places: Mapping[JobKey, Standing], mark: int) -> None:
        """JOBS held `seen` at some moment after `mark`; `places` are the jobs they point to.

        What was published since `mark` is kept, what should have been seen and was not is published anew.
        """
        now_us = micros(self._clock())
        kept = {line: {p: n for p, n in held.items() if n is None or n > mark} for line, held in self._held.items()}
        believed = {pointer for held in self._held.values() for pointer in held} | self._resting
        self._held = defaultdict(dict, {line: held for line, held in kept.items() if held})
        self._resting = set()
        for pointer in seen:
            place = places.get(pointer.key)
            if place is None or place.pointer != pointer or place.status in FINAL:
                continue
            if place.resting(now_us):
                self._resting.add(pointer)
            else:
                self._held[place.line].setdefault(pointer, mark)
        self._lost = {pointer for pointer in believed | self._lost if not self.holds(pointer)}
        self._synced = True

    async def fill(self, lines: Collection[Line] | None = None) -> None:
        """Move jobs up wherever there is room: in `lines`, or in every line where jobs are queued."""
        if not self._synced:
            return
        short = self._index.lines.occupied() if lines is None else lines
        waiting = [await self._candidates(line) for line in sorted(short, key=_urgency)]
        # One of each owner in turn, so that a long line does not fill JOBS before a short one has had its first.
        for turn in zip_longest(*waiting):
            for pointer in turn:
                if pointer is not None and not self.holds(pointer) and self._room(_line(pointer)):
                    await self._publish(pointer)

    async def run(self) -> None:
        """Publish what is sent, and refill lines as soon as one of their jobs ends, without end."""
        async with create_task_group() as self._tasks:
            await self._index.ready()
            await self._refill()

    async def _refill(self) -> None:
        while True:
            await self._woken.wait()
            self._woken = Event()
            short, self._short = self._short, set()
            try:
                await self.fill(short)
            except (BusError, Refused) as error:
                _log.warning("refill_put_off", error=str(error))  # the reconciler's next sync goes on

    def _see(self, steps: Sequence[Step]) -> None:
        """The index moved: free what ended, and note which lines have room now."""
        now_us = micros(self._clock())
        for before, after in steps:
            if before is not None and (after is None or after.pointer != before.pointer or after.status in FINAL):
                self._drop(before.line, before.pointer)
            if after is not None and after.status not in FINAL:
                self._settle(after, now_us)
        if self._synced and self._short:
            self._woken.set()

    def _settle(self, place: Standing, now_us: int) -> None:
        pointer, line = place.pointer, place.line
        if place.resting(now_us):
            if pointer in self._held.get(line, ()):
                self._uncount(pointer)
                self._resting.add(pointer)
                self._short.add(line)
        elif pointer in self._resting:
            self._resting.discard(pointer)
            self._held[line][pointer] = self._published
        elif place.status in ACTIVE and not self.holds(pointer):
            self._held[line][pointer] = self._published  # another edge put it there
        elif place.status is Status.QUEUED and not self.holds(pointer) and self._room(line):
            self._short.add(line)

    def _drop(self, line: Line, pointer: Pointer) -> None:
        self._resting.discard(pointer)
        self._lost.discard(pointer)
        self._uncount(pointer)
        self._short.add(line)
        if self._running(line.owner):  # the place that is free now may be another line's
            self._short.update(other for other in self._index.lines.occupied() if other.owner == line.owner)

    def _uncount(self, pointer: Pointer) -> None:
        line = _line(pointer)
        self._held[line].pop(pointer, None)
        if not self._held[line]:
            del self._held[line]

    def _room(self, line: Line) -> int:
        room = self.span(line.pool) - len(self._held.get(line, ()))
        most = self._running(line.owner)
        return max(0, min(room, most - self._standing(line.owner)) if most else room)

    def _standing(self, owner: str) -> int:
        """The owner's pointers in JOBS."""
        held = sum(len(pointers) for line, pointers in self._held.items() if line.owner == owner)
        return held + sum(pointer.owner == owner for pointer in self._resting)

    async def _candidates(self, line: Line) -> list[Pointer]:
        room = self._room(line)
        if not room:
            return []
        known = len(self._held.get(line, ())) + sum(_line(pointer) == line for pointer in self._resting)
        front = await self._index.front(line, known + room)
        return [pointer for pointer in front if not self.holds(pointer)][:room]

    async def _publish(self, pointer: Pointer) -> bool:
        async with self._counted(pointer):
            if pointer in self._lost:
                return await self._republish(pointer)
            await self._queue.publish(pointer)
        return self.holds(pointer)

    async def _republish(self, pointer: Pointer) -> bool:
        """No message was found where one should be: the record says whether one is still wanted."""
        self._lost.discard(pointer)
        entry = await self._records.read(pointer.key)
        job = entry.recorded.job if entry else None
        if job is None or job.pointer != pointer or job.status is not Status.QUEUED:
            self._uncount(pointer)
            return False
        await self._queue.publish(pointer, repair=True)
        return True

    @asynccontextmanager
    async def _counted(self, pointer: Pointer) -> AsyncIterator[None]:
        """Count the pointer before its publish, so that two at once see each other; uncount it when that fails."""
        self._held[_line(pointer)][pointer] = None
        try:
            yield
        except (BusError, RecordUnreadable) as error:
            self._uncount(pointer)
            _log.warning("publish_put_off", owner=pointer.owner, job_id=pointer.id, error=str(error))
        except BaseException:
            self._uncount(pointer)
            raise
        else:
            self._published += 1
            # Looked up anew: a sync may have made new dictionaries, and the job may have ended, meanwhile.
            if pointer in self._held.get(_line(pointer), ()):
                self._held[_line(pointer)][pointer] = self._published


def _urgency(line: Line) -> int:
    return PRIORITIES.index(line.priority)


def _line(pointer: Pointer) -> Line:
    return Line(pointer.owner, pointer.pool, pointer.priority)
