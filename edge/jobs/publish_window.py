"""Fair queueing: at most N messages per owner, pool and priority in the queue JOBS (the publish window).

JOBS is first-in, first-out for all owners. With a window, a thousand jobs of one owner put at most one window of
messages ahead of another owner's job.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import zip_longest

import structlog
from anyio import create_task_group
from anyio.abc import TaskGroup

from bus.interface import BusError, JobQueue, JobStore
from bus.notifier import Notifier
from edge.core.clock import Clock, micros
from edge.index.index import JobIndex
from edge.index.rows import IndexRow, QueueKey, RowChange
from schemas.events import RecordUnreadable
from schemas.job import ACTIVE_STATUSES, FINAL_STATUSES, PRIORITIES, Job, JobKey, Pointer, Status
from schemas.problems import ProblemError

MIN_WINDOW = 8
WINDOW_PER_SLOT = 4

_log = structlog.get_logger()


def _unlimited(_owner: str) -> int:
    """Return 0: no limit for any owner."""
    return 0


class PublishWindow:
    """Publishes the pointers of queued jobs, counts the pointers in JOBS, and refills a queue when a job in it ends.

    `pool_slots` returns the number of slots that hosts last announced for a pool. `running_limit` returns how many jobs
    of an owner may run (0: no limit). It also limits the owner's pointers in JOBS, over all queues, those in backoff
    included.

    Nothing is published before the first `sync`, because the content of JOBS is not known yet. A failed publish is not
    repeated here: the reconciler's next `sync` finds the pointer missing.
    """

    def __init__(  # noqa: PLR0913 - three services and three functions that it calls
        self,
        *,
        queue: JobQueue,
        records: JobStore,
        index: JobIndex,
        pool_slots: Callable[[str], int],
        clock: Clock,
        running_limit: Callable[[str], int] = _unlimited,
    ) -> None:
        self._queue = queue
        self._records = records
        self._index = index
        self._pool_slots = pool_slots
        self._clock = clock
        self._running_limit = running_limit
        # The pointers in JOBS, each with the number of its publish; None while it is being published.
        self._pointers: defaultdict[QueueKey, dict[Pointer, int | None]] = defaultdict(dict)
        self._in_backoff: set[Pointer] = set()
        self._missing: set[Pointer] = set()
        self._published_total = 0
        self._synced = False
        self._keys_with_room: set[QueueKey] = set()
        self._refill_needed = Notifier()
        self._tasks: TaskGroup | None = None
        self._publishes_in_flight = 0
        self._publishing_ended = Notifier()
        index.subscribe_changes(self._on_row_changes)

    def window_size(self, pool: str) -> int:
        """Return how many pointers an owner may have in JOBS per priority."""
        return max(MIN_WINDOW, WINDOW_PER_SLOT * self._pool_slots(pool))

    def contains(self, pointer: Pointer) -> bool:
        """Return whether the pointer is in JOBS, as far as this edge knows."""
        return pointer in self._pointers.get(_queue_key(pointer), ()) or pointer in self._in_backoff

    def has_room(self, job: Job) -> bool:
        """Return whether the job's queue may have one more pointer in JOBS, so that the job is published soon."""
        return self._free_places(_queue_key(job.pointer)) > 0

    async def publish_if_room(self, job: Job) -> bool:
        """Publish the job's pointer if the job is queued and the window has room; return whether it is in JOBS now."""
        pointer = job.pointer
        if self.contains(pointer):
            return True
        if job.status is not Status.QUEUED or not self._synced or not self._free_places(_queue_key(pointer)):
            return False
        return await self._publish(pointer)

    def publish_soon(self, job: Job) -> None:
        """Start `publish_if_room` in a task: a submit is answered as soon as its record is durable.

        If the edge stops before the task has run, the reconciler publishes the pointer.
        """
        if self._tasks is not None:
            self._publishes_in_flight += 1
            self._tasks.start_soon(self._publish_scheduled, job)

    async def _publish_scheduled(self, job: Job) -> None:
        try:
            await self.publish_if_room(job)
        finally:
            self._publishes_in_flight -= 1
            self._publishing_ended.notify()

    async def wait_until_idle(self) -> None:
        """Wait until every task of `publish_soon` has ended."""
        await self._publishing_ended.wait_until(lambda: not self._publishes_in_flight)

    def publish_count(self) -> int:
        """Return the number of publishes so far. Taken before JOBS is read, it is the `mark` for `sync`."""
        return self._published_total

    def sync(self, seen: Collection[Pointer], rows: Mapping[JobKey, IndexRow], mark: int) -> None:
        """Replace the known content of JOBS by `seen`: the pointers that were read from JOBS after `mark` was taken.

        `rows`: the index rows of their jobs. Pointers that were published after `mark` are kept. Pointers that should
        be in JOBS and are not in `seen` are published again.
        """
        now_us = micros(self._clock())
        recent = {
            queue: {pointer: n for pointer, n in pointers.items() if n is None or n > mark}
            for queue, pointers in self._pointers.items()
        }
        expected = {pointer for pointers in self._pointers.values() for pointer in pointers} | self._in_backoff
        self._pointers = defaultdict(dict, {queue: pointers for queue, pointers in recent.items() if pointers})
        self._in_backoff = set()
        for pointer in seen:
            row = rows.get(pointer.key)
            if row is None or row.pointer != pointer or row.status in FINAL_STATUSES:
                continue
            if row.is_in_backoff(now_us):
                self._in_backoff.add(pointer)
            else:
                self._pointers[row.queue_key].setdefault(pointer, mark)
        self._missing = {pointer for pointer in expected | self._missing if not self.contains(pointer)}
        self._synced = True

    async def fill(self, queues: Collection[QueueKey] | None = None) -> None:
        """Publish queued jobs wherever there is room: in `queues`, or in every queue that has jobs."""
        if not self._synced:
            return
        to_fill = self._index.queue_ranks.non_empty_keys() if queues is None else queues
        candidates = [await self._candidates(queue) for queue in sorted(to_fill, key=_priority_rank)]
        # One job of each queue in turn, so that a long queue does not fill JOBS before the first job of a short one.
        for turn in zip_longest(*candidates):
            for pointer in turn:
                if pointer is not None and not self.contains(pointer) and self._free_places(_queue_key(pointer)):
                    await self._publish(pointer)

    async def run(self) -> None:
        """Run the tasks of `publish_soon`, and refill a queue when one of its jobs ends, until cancelled."""
        async with create_task_group() as self._tasks:
            await self._index.wait_until_caught_up()
            await self._refill()

    async def _refill(self) -> None:
        while True:
            await self._refill_needed.wait_until(lambda: self._synced and bool(self._keys_with_room))
            queues, self._keys_with_room = self._keys_with_room, set()
            try:
                await self.fill(queues)
            except (BusError, ProblemError) as error:  # the reconciler's next sync fills the queues
                _log.warning("refill_failed", error=str(error))

    def _on_row_changes(self, changes: Sequence[RowChange]) -> None:
        """Remove the pointers of jobs that ended, and note the queues that have room now."""
        now_us = micros(self._clock())
        for before, after in changes:
            if before is not None and (
                after is None or after.pointer != before.pointer or after.status in FINAL_STATUSES
            ):
                self._forget_pointer(before.queue_key, before.pointer)
            if after is not None and after.status not in FINAL_STATUSES:
                self._apply_row(after, now_us)
        if self._synced and self._keys_with_room:
            self._refill_needed.notify()

    def _apply_row(self, row: IndexRow, now_us: int) -> None:
        pointer, queue = row.pointer, row.queue_key
        if row.is_in_backoff(now_us):
            if pointer in self._pointers.get(queue, ()):
                self._discard_pointer(pointer)
                self._in_backoff.add(pointer)
                self._keys_with_room.add(queue)
        elif pointer in self._in_backoff:
            self._in_backoff.discard(pointer)
            self._pointers[queue][pointer] = self._published_total
        elif row.status in ACTIVE_STATUSES and not self.contains(pointer):
            self._pointers[queue][pointer] = self._published_total  # another edge published it
        elif row.status is Status.QUEUED and not self.contains(pointer) and self._free_places(queue):
            self._keys_with_room.add(queue)

    def _forget_pointer(self, queue: QueueKey, pointer: Pointer) -> None:
        self._in_backoff.discard(pointer)
        self._missing.discard(pointer)
        self._discard_pointer(pointer)
        self._keys_with_room.add(queue)
        if self._running_limit(queue.owner):  # another queue of the owner may take the place that is free now
            self._keys_with_room.update(
                other for other in self._index.queue_ranks.non_empty_keys() if other.owner == queue.owner
            )

    def _discard_pointer(self, pointer: Pointer) -> None:
        queue = _queue_key(pointer)
        self._pointers[queue].pop(pointer, None)
        if not self._pointers[queue]:
            del self._pointers[queue]

    def _free_places(self, queue: QueueKey) -> int:
        room = self.window_size(queue.pool) - len(self._pointers.get(queue, ()))
        limit = self._running_limit(queue.owner)
        return max(0, min(room, limit - self._count_published(queue.owner)) if limit else room)

    def _count_published(self, owner: str) -> int:
        """Return the number of the owner's pointers in JOBS, jobs in backoff included."""
        published = sum(len(pointers) for queue, pointers in self._pointers.items() if queue.owner == owner)
        return published + sum(pointer.owner == owner for pointer in self._in_backoff)

    async def _candidates(self, queue: QueueKey) -> list[Pointer]:
        room = self._free_places(queue)
        if not room:
            return []
        published = len(self._pointers.get(queue, ()))
        published += sum(_queue_key(pointer) == queue for pointer in self._in_backoff)
        head = await self._index.queue_head(queue, published + room)
        return [pointer for pointer in head if not self.contains(pointer)][:room]

    async def _publish(self, pointer: Pointer) -> bool:
        async with self._counting_publish(pointer):
            if pointer in self._missing:
                return await self._republish(pointer)
            await self._queue.publish(pointer)
        return self.contains(pointer)

    async def _republish(self, pointer: Pointer) -> bool:
        """Publish a pointer that was missing in JOBS, if its record says that the job still waits."""
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
        """Count the pointer before it is published, so that concurrent publishes see it; remove it if that fails."""
        self._pointers[_queue_key(pointer)][pointer] = None
        try:
            yield
        except (BusError, RecordUnreadable) as error:
            self._discard_pointer(pointer)
            _log.warning("publish_failed", owner=pointer.owner, job_id=pointer.id, error=str(error))
        except BaseException:
            self._discard_pointer(pointer)
            raise
        else:
            self._published_total += 1
            # Looked up again: in the meantime a sync may have replaced the dictionaries, or the job may have ended.
            if pointer in self._pointers.get(_queue_key(pointer), ()):
                self._pointers[_queue_key(pointer)][pointer] = self._published_total


def _priority_rank(queue: QueueKey) -> int:
    return PRIORITIES.index(queue.priority)


def _queue_key(pointer: Pointer) -> QueueKey:
    return QueueKey(pointer.owner, pointer.pool, pointer.priority)
