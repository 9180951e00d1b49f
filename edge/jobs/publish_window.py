"""Who may stand in JOBS: per owner, pool and priority a bounded window of pointers, so that a thousand jobs of one
owner stand at most one window ahead of another's one (DESIGN 3, "Window and quotas")."""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import zip_longest

import structlog
from anyio import Event, create_task_group
from anyio.abc import TaskGroup

from bus.interface import BusError, JobQueue, JobStore
from edge.core.clock import Clock, micros
from edge.index.index import JobIndex
from edge.index.queue_ranks import QueueKey
from edge.index.row import IndexRow, RowChange
from schemas.events import RecordUnreadable
from schemas.ids import JobKey
from schemas.job import Job, Pointer
from schemas.problems import ProblemError
from schemas.status import ACTIVE_STATUSES, FINAL_STATUSES, PRIORITIES, Status

MIN_WINDOW = 8
WINDOW_PER_SLOT = 4

_log = structlog.get_logger()


def _unlimited(_: str) -> int:
    """No owner is limited."""
    return 0


class PublishWindow:
    """Counts the pointers in JOBS, its own publishes at once, and moves jobs up when one ends.

    `slots` tells the slots last offered to a pool; `running` how many of an owner's jobs may run (0: any number): no
    more of them stand in JOBS, over all lines, those in back-off too. Until the first `sync` it publishes nothing: it
    cannot know yet what is there. A publish that fails is not tried again here; the reconciler's next `sync` finds it
    missing.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what it works with, and two bounds
        self,
        queue: JobQueue,
        records: JobStore,
        index: JobIndex,
        slots: Callable[[str], int],
        clock: Clock,
        running: Callable[[str], int] = _unlimited,
    ) -> None:
        self._queue = queue
        self._records = records
        self._index = index
        self._pool_slots = slots
        self._clock = clock
        self._running_limit = running
        self._pointers: defaultdict[QueueKey, dict[Pointer, int | None]] = defaultdict(
            dict
        )  # None: its publish is under way
        self._in_backoff: set[Pointer] = set()
        self._missing: set[Pointer] = set()
        self._publish_count = 0
        self._synced = False
        self._keys_with_room: set[QueueKey] = set()
        self._refill_needed = Event()
        self._tasks: TaskGroup | None = None
        self._sending = 0
        self._sent = Event()
        index.subscribe_changes(self._on_row_changes)

    def window_size(self, pool: str) -> int:
        """How many pointers an owner may have there in each priority."""
        return max(MIN_WINDOW, WINDOW_PER_SLOT * self._pool_slots(pool))

    def contains(self, pointer: Pointer) -> bool:
        """Whether the job stands in JOBS, as far as this edge knows."""
        return pointer in self._pointers.get(_queue_key(pointer), ()) or pointer in self._in_backoff

    def has_room(self, job: Job) -> bool:
        """Whether the job's line may have one more pointer there: if so, nothing but a moment keeps it out."""
        return self._free_places(_queue_key(job.pointer)) > 0

    async def publish_if_room(self, job: Job) -> bool:
        """Publish the job's pointer if it is queued and there is room; whether it stands in JOBS now."""
        pointer = job.pointer
        if self.contains(pointer):
            return True
        if job.status is not Status.QUEUED or not self._synced or not self._free_places(_queue_key(pointer)):
            return False
        return await self._publish(pointer)

    def publish_soon(self, job: Job) -> None:
        """`offer` without waiting for it: a submit is answered as soon as the record is durable.

        What is cut off between the two is found by the reconciler.
        """
        if self._tasks is not None:
            self._sending += 1
            self._tasks.start_soon(self._publish_scheduled, job)

    async def _publish_scheduled(self, job: Job) -> None:
        try:
            await self.publish_if_room(job)
        finally:
            self._sending -= 1
            if not self._sending:
                self._sent.set()
                self._sent = Event()

    async def wait_until_idle(self) -> None:
        """Wait until everything sent has been published, or put off."""
        while self._sending:
            await self._sent.wait()

    def publish_count(self) -> int:
        """A point in time for `sync`: take it before JOBS is read."""
        return self._publish_count

    def sync(self, seen: Collection[Pointer], places: Mapping[JobKey, IndexRow], mark: int) -> None:
        """JOBS held `seen` at some moment after `mark`; `places` are the jobs they point to.

        What was published since `mark` is kept, what should have been seen and was not is published anew.
        """
        now_us = micros(self._clock())
        kept = {line: {p: n for p, n in held.items() if n is None or n > mark} for line, held in self._pointers.items()}
        believed = {pointer for held in self._pointers.values() for pointer in held} | self._in_backoff
        self._pointers = defaultdict(dict, {line: held for line, held in kept.items() if held})
        self._in_backoff = set()
        for pointer in seen:
            place = places.get(pointer.key)
            if place is None or place.pointer != pointer or place.status in FINAL_STATUSES:
                continue
            if place.is_in_backoff(now_us):
                self._in_backoff.add(pointer)
            else:
                self._pointers[place.queue_key].setdefault(pointer, mark)
        self._missing = {pointer for pointer in believed | self._missing if not self.contains(pointer)}
        self._synced = True

    async def fill(self, lines: Collection[QueueKey] | None = None) -> None:
        """Move jobs up wherever there is room: in `lines`, or in every line where jobs are queued."""
        if not self._synced:
            return
        short = self._index.queue_ranks.non_empty_keys() if lines is None else lines
        waiting = [await self._candidates(line) for line in sorted(short, key=_priority_rank)]
        # One of each owner in turn, so that a long line does not fill JOBS before a short one has had its first.
        for turn in zip_longest(*waiting):
            for pointer in turn:
                if pointer is not None and not self.contains(pointer) and self._free_places(_queue_key(pointer)):
                    await self._publish(pointer)

    async def run(self) -> None:
        """Publish what is sent, and refill lines as soon as one of their jobs ends, without end."""
        async with create_task_group() as self._tasks:
            await self._index.wait_until_caught_up()
            await self._refill()

    async def _refill(self) -> None:
        while True:
            await self._refill_needed.wait()
            self._refill_needed = Event()
            short, self._keys_with_room = self._keys_with_room, set()
            try:
                await self.fill(short)
            except (BusError, ProblemError) as error:
                _log.warning("refill_put_off", error=str(error))  # the reconciler's next sync goes on

    def _on_row_changes(self, steps: Sequence[RowChange]) -> None:
        """The index moved: free what ended, and note which lines have room now."""
        now_us = micros(self._clock())
        for before, after in steps:
            if before is not None and (
                after is None or after.pointer != before.pointer or after.status in FINAL_STATUSES
            ):
                self._forget_pointer(before.queue_key, before.pointer)
            if after is not None and after.status not in FINAL_STATUSES:
                self._apply_row(after, now_us)
        if self._synced and self._keys_with_room:
            self._refill_needed.set()

    def _apply_row(self, place: IndexRow, now_us: int) -> None:
        pointer, line = place.pointer, place.queue_key
        if place.is_in_backoff(now_us):
            if pointer in self._pointers.get(line, ()):
                self._discard_pointer(pointer)
                self._in_backoff.add(pointer)
                self._keys_with_room.add(line)
        elif pointer in self._in_backoff:
            self._in_backoff.discard(pointer)
            self._pointers[line][pointer] = self._publish_count
        elif place.status in ACTIVE_STATUSES and not self.contains(pointer):
            self._pointers[line][pointer] = self._publish_count  # another edge put it there
        elif place.status is Status.QUEUED and not self.contains(pointer) and self._free_places(line):
            self._keys_with_room.add(line)

    def _forget_pointer(self, line: QueueKey, pointer: Pointer) -> None:
        self._in_backoff.discard(pointer)
        self._missing.discard(pointer)
        self._discard_pointer(pointer)
        self._keys_with_room.add(line)
        if self._running_limit(line.owner):  # the place that is free now may be another line's
            self._keys_with_room.update(
                other for other in self._index.queue_ranks.non_empty_keys() if other.owner == line.owner
            )

    def _discard_pointer(self, pointer: Pointer) -> None:
        line = _queue_key(pointer)
        self._pointers[line].pop(pointer, None)
        if not self._pointers[line]:
            del self._pointers[line]

    def _free_places(self, line: QueueKey) -> int:
        room = self.window_size(line.pool) - len(self._pointers.get(line, ()))
        most = self._running_limit(line.owner)
        return max(0, min(room, most - self._count_published(line.owner)) if most else room)

    def _count_published(self, owner: str) -> int:
        """The owner's pointers in JOBS."""
        held = sum(len(pointers) for line, pointers in self._pointers.items() if line.owner == owner)
        return held + sum(pointer.owner == owner for pointer in self._in_backoff)

    async def _candidates(self, line: QueueKey) -> list[Pointer]:
        room = self._free_places(line)
        if not room:
            return []
        known = len(self._pointers.get(line, ())) + sum(_queue_key(pointer) == line for pointer in self._in_backoff)
        front = await self._index.queue_head(line, known + room)
        return [pointer for pointer in front if not self.contains(pointer)][:room]

    async def _publish(self, pointer: Pointer) -> bool:
        async with self._counting_publish(pointer):
            if pointer in self._missing:
                return await self._republish(pointer)
            await self._queue.publish(pointer)
        return self.contains(pointer)

    async def _republish(self, pointer: Pointer) -> bool:
        """No message was found where one should be: the record says whether one is still wanted."""
        self._missing.discard(pointer)
        entry = await self._records.read(pointer.key)
        job = entry.record.job if entry else None
        if job is None or job.pointer != pointer or job.status is not Status.QUEUED:
            self._discard_pointer(pointer)
            return False
        await self._queue.publish(pointer, repair=True)
        return True

    @asynccontextmanager
    async def _counting_publish(self, pointer: Pointer) -> AsyncIterator[None]:
        """Count the pointer before its publish, so that two at once see each other; uncount it when that fails."""
        self._pointers[_queue_key(pointer)][pointer] = None
        try:
            yield
        except (BusError, RecordUnreadable) as error:
            self._discard_pointer(pointer)
            _log.warning("publish_put_off", owner=pointer.owner, job_id=pointer.id, error=str(error))
        except BaseException:
            self._discard_pointer(pointer)
            raise
        else:
            self._publish_count += 1
            # Looked up anew: a sync may have made new dictionaries, and the job may have ended, meanwhile.
            if pointer in self._pointers.get(_queue_key(pointer), ()):
                self._pointers[_queue_key(pointer)][pointer] = self._publish_count


def _priority_rank(line: QueueKey) -> int:
    return PRIORITIES.index(line.priority)


def _queue_key(pointer: Pointer) -> QueueKey:
    return QueueKey(pointer.owner, pointer.pool, pointer.priority)
