"""What cannot be read from one record: lists, counts, positions. Fed by STATE's own stream, rebuilt at every start.

The file answers searches, in a thread; ranks and counts are kept in memory and change with every step, so that none of
them costs more when more jobs wait.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from sqlite3 import Connection, OperationalError
from typing import NamedTuple, TypeVar

import structlog
from anyio import CancelScope, CapacityLimiter, Event, create_task_group, move_on_after, sleep, to_thread

from bus.interface import CaughtUp, JobStore, RecordChange, VersionedRecord
from edge.core.bounded_queue import BoundedQueue
from edge.index import sqlite as sql
from edge.index.paging import DEFAULT_PAGE_LIMIT, PAGE_LIMIT, JobFilters, RecordPage, decode_cursor, make_job_cursor
from edge.index.queue_ranks import QueueKey, QueueRanks
from edge.index.row import IndexRow, RowChange
from schemas.events import RecordUnreadable
from schemas.ids import JobKey
from schemas.job import Job, Pointer
from schemas.problems import ProblemError
from schemas.status import FINAL_STATUSES, Status

T = TypeVar("T")
ChangeSubscriber = Callable[[Sequence[RowChange]], None]
RecordSubscriber = Callable[[Sequence[RecordChange]], None]

LOOK_AGAIN_S = (0.05, 0.2, 0.75)  # a host that has just claimed a job is faster than the index; then it is refused
CATCH_UP_TIMEOUT_S = 5.0  # a list waits at most this long for the caller's own last change
_BATCH_LIMIT = 500
_BATCH_INTERVAL_S = (
    0.01  # a burst is taken over in few steps: each costs a hop to a thread, and the loop waits for the GIL
)
_UNFINISHED = frozenset(Status) - FINAL_STATUSES

_log = structlog.get_logger()


class RepairedChange(NamedTuple):
    """A change that the check against the key list found; it says nothing about how far the stream has come."""

    change: RecordChange


class JobCountKey(NamedTuple):
    """What jobs are counted by."""

    owner: str
    endpoint: str
    pool: str
    status: Status


class JobIndex:
    """`run` feeds it; every question but `position` and `counts` waits until it has caught up."""

    def __init__(self, path: Path, records: JobStore) -> None:
        self._path = path
        self._records = records
        self._db: Connection | None = None
        self._db_limiter = CapacityLimiter(1)
        self._revision = 0
        self._own_revisions: dict[str, int] = {}
        self._advanced = Event()
        self._caught_up = Event()
        self._changes: BoundedQueue[RecordChange | CaughtUp | RepairedChange] = BoundedQueue(4 * _BATCH_LIMIT)
        self._change_subscribers: list[ChangeSubscriber] = []
        self._record_subscribers: list[RecordSubscriber] = []
        self._counts: Counter[JobCountKey] = Counter()
        self.queue_ranks = QueueRanks()

    @property
    def is_caught_up(self) -> bool:
        """Whether everything that was in STATE when `run` began has been taken over."""
        return self._caught_up.is_set()

    async def wait_until_caught_up(self) -> None:
        """Wait until it has caught up."""
        await self._caught_up.wait()

    def subscribe_changes(self, watcher: ChangeSubscriber) -> None:
        """Call `watcher` with every batch of steps, those of the rebuilding too. It must not block."""
        self._change_subscribers.append(watcher)

    def subscribe_records(self, tap: RecordSubscriber) -> None:
        """Call `tap` with every batch of changes as STATE gives them, records and all, in its order; at the start with
        the last of every job. It must not block."""
        self._record_subscribers.append(tap)

    async def run(self) -> None:
        """Make the file anew and follow STATE, without end."""
        self._db = await retry_on_disk_error(partial(to_thread.run_sync, sql.create_database, self._path))
        try:
            async with create_task_group() as tasks:
                tasks.start_soon(self._changes.put_all, self._records.changes())
                while True:
                    await self._apply_batch(await self._changes.get_batch(_BATCH_LIMIT))
                    await sleep(_BATCH_INTERVAL_S)
        finally:
            # In turn behind the questions already asked: SQLite crashes when it is closed under one.
            db, self._db = self._db, None
            with CancelScope(shield=True):
                await to_thread.run_sync(db.close, limiter=self._db_limiter)

    async def _apply_batch(self, items: Sequence[RecordChange | CaughtUp | RepairedChange]) -> None:
        streamed = [item for item in items if isinstance(item, RecordChange)]
        changes = [*streamed, *(item.change for item in items if isinstance(item, RepairedChange))]
        if changes:
            for tap in self._record_subscribers:
                tap(changes)
            self._apply_row_changes(await retry_on_disk_error(partial(self._run_exclusive, sql.apply_changes, changes)))
        if streamed:
            self._revision = streamed[-1].revision
        if any(isinstance(item, CaughtUp) for item in items):
            self._caught_up.set()
        self._advanced.set()
        self._advanced = Event()

    def _apply_row_changes(self, steps: Sequence[RowChange]) -> None:
        for before, after in steps:
            self._remove_row(before)
            self._add_row(after)
        for watcher in self._change_subscribers:
            watcher(steps)

    def _add_row(self, place: IndexRow | None) -> None:
        if place is None:
            return
        self._counts[_count_key(place)] += 1
        if place.status is Status.QUEUED:
            self.queue_ranks.add(place.queue_key, place.queued_us)

    def _remove_row(self, place: IndexRow | None) -> None:
        if place is None:
            return
        self._counts[_count_key(place)] -= 1
        if not self._counts[_count_key(place)]:
            del self._counts[_count_key(place)]
        if place.status is Status.QUEUED:
            self.queue_ranks.remove(place.queue_key, place.queued_us)

    async def _query(self, question: Callable[..., T], *about: object) -> T:
        if self._db is None:
            raise ProblemError("unavailable", "the edge is starting or stopping: try again", retry_after_s=5)
        try:
            return await self._run_exclusive(question, *about)
        except OperationalError as error:
            raise ProblemError(
                "unavailable", f"the edge's disk fails ({error}): give it room", retry_after_s=5
            ) from error

    async def _run_exclusive(self, question: Callable[..., T], *about: object) -> T:
        return await to_thread.run_sync(question, self._db, *about, limiter=self._db_limiter)

    async def _query_when_ready(self, question: Callable[..., T], *about: object) -> T:
        """`_ask`, once there is something to ask. Raises Refused `unavailable` when that takes too long."""
        with move_on_after(CATCH_UP_TIMEOUT_S):
            await self._caught_up.wait()
        if not self.is_caught_up:
            raise ProblemError(
                "unavailable", "the edge has just started and still reads its jobs: try again", retry_after_s=5
            )
        return await self._query(question, *about)

    def record_own_write(self, owner: str, revision: int) -> None:
        """This edge wrote `revision` for `owner`: the owner's next list waits for it."""
        self._own_revisions[owner] = max(revision, self._own_revisions.get(owner, 0))

    async def wait_for_revision(self, revision: int) -> bool:
        """Wait, at most REACH_S, until everything up to `revision` is in; whether it is."""
        with move_on_after(CATCH_UP_TIMEOUT_S):
            while self._revision < revision:
                await self._advanced.wait()
        return self._revision >= revision

    async def wait_for_own_writes(self, owner: str | None = None) -> bool:
        """`reached` for what this edge last wrote for `owner`, or for anybody."""
        last = max(self._own_revisions.values(), default=0) if owner is None else self._own_revisions.get(owner, 0)
        return await self.wait_for_revision(last)

    async def wait_until_deleted(self, key: JobKey) -> None:
        """Wait, at most REACH_S, until a deleted job is gone from here too."""
        with move_on_after(CATCH_UP_TIMEOUT_S):
            while True:
                moved = self._advanced
                if await self._query(sql.find_row, key) is None:
                    return
                await moved.wait()

    async def list_jobs(
        self, owner: str, filters: JobFilters, limit: int = DEFAULT_PAGE_LIMIT, cursor: str | None = None
    ) -> RecordPage:
        """One page. New jobs never shift it: the cursor names the last job given. Raises Refused."""
        await self.wait_for_own_writes(owner)
        limit = max(1, min(limit, PAGE_LIMIT))
        before = None if cursor is None else decode_cursor(cursor)
        asked = sql.ListQuery(
            owner, filters.status, filters.endpoint, filters.priority, filters.tags, before, limit + 1
        )
        found = await self._query_when_ready(sql.list_jobs, asked)
        entries = tuple(found[:limit])
        return RecordPage(entries, make_job_cursor(entries[-1].record.job) if len(found) > limit else None)

    def count_jobs(self) -> dict[JobCountKey, int]:
        """How many jobs there are, by owner, endpoint, pool and status."""
        return dict(self._counts)

    async def count_retried(self, owner: str, endpoint: str) -> int:
        """How many of the owner's jobs were given another round."""
        return await self._query_when_ready(sql.count_retried, owner, endpoint)

    def queue_position(self, job: Job, span: int) -> int | None:
        """Jobs that start before this one (0: next), None unless it is queued; `span` is the owner's window."""
        return (
            self.queue_ranks.count_ahead(job, span)
            if job.status is Status.QUEUED and job.queued_at is not None
            else None
        )

    async def queue_head(self, line: QueueKey, limit: int) -> Sequence[Pointer]:
        """The first `limit` queued jobs of a line."""
        return await self._query_when_ready(sql.queue_head, line, limit)

    async def find_rows(self, keys: Iterable[JobKey]) -> dict[JobKey, IndexRow]:
        """The places of those of `keys` that are known."""
        return await self._query_when_ready(sql.find_rows, list(keys))

    async def find_jobs(self, condition: str, at_us: int, limit: int) -> Sequence[VersionedRecord]:
        """Up to `limit` jobs that one of the conditions of `index_sql` holds for."""
        return await self._query_when_ready(sql.find_jobs, condition, at_us, limit)

    async def find_keys(self, condition: str, at_us: int, limit: int) -> Sequence[JobKey]:
        """The keys of what `matching` finds: no record is read."""
        return await self._query_when_ready(sql.find_keys, condition, at_us, limit)

    async def find_pools(self, condition: str, at_us: int, limit: int) -> set[str]:
        """The pools of what `matching` finds."""
        return await self._query_when_ready(sql.find_pools, condition, at_us, limit)

    async def find_unfinished_jobs_with_asset(self, owner: str | None, sha256: str) -> Sequence[JobKey]:
        """Jobs that have not ended and name the asset; `owner` None: anybody's."""
        return await self._query_when_ready(sql.find_jobs_with_asset, sha256, owner, _UNFINISHED)

    async def find_jobs_with_asset(self, owner: str, sha256: str) -> Sequence[JobKey]:
        """The owner's jobs, ended ones too, that name the asset."""
        return await self._query_when_ready(sql.find_jobs_with_asset, sha256, owner, tuple(Status))

    async def holds_job(self, owner: str, host: str | None) -> bool:
        """Whether `host` (None: any host) holds a job of the owner. Looks again for a moment before it says no."""
        return await self._soon(sql.holds_job, owner, host)

    async def may_need(self, owner: str, host: str | None, sha256: str, endpoints: Sequence[str] | None) -> bool:
        """Whether a job of the owner names the asset, and is held by `host` (None: any host), or is queued for one of
        `endpoints` (None: any endpoint). Looks again for a moment before it says no."""
        return await self._soon(sql.may_need, owner, host, sha256, endpoints)

    async def _soon(self, question: Callable[..., bool], *about: object) -> bool:
        """Whether it is so now or after one of the waits of LOOK_AGAIN_S. A bounded number of looks: whoever is
        refused must not keep the index busy."""
        for wait_s in LOOK_AGAIN_S:
            if await self._query_when_ready(question, *about):
                return True
            await sleep(wait_s)
        return await self._query_when_ready(question, *about)

    async def repair(self) -> int:
        """Compare with STATE's key list and mend; how many jobs differed. A purge sends no message."""
        here = await self._query_when_ready(sql.list_keys)
        there = await self._records.keys()
        mends = [change for key in here ^ there if (change := await self._read_change(key)) is not None]
        for change in mends:
            await self._changes.put(RepairedChange(change))
        if mends:
            _log.warning("index_mended", jobs=len(mends))
        return len(mends)

    async def _read_change(self, key: JobKey) -> RecordChange | None:
        try:
            entry = await self._records.read(key)
        except RecordUnreadable:
            return None
        if entry is not None:
            return RecordChange(entry.revision, key, entry.record)
        known = await self._query(sql.find_row, key)
        return None if known is None else RecordChange(known.revision + 1, key, None)


def _count_key(place: IndexRow) -> JobCountKey:
    return JobCountKey(place.owner, place.endpoint, place.pool, place.status)


# MERGED edge/services/room.py: Waiting for a disk: what the edge can make anew from STATE must not end it.


DISK_RETRY_INTERVAL_S = 1.0


async def retry_on_disk_error(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask again for as long as the disk is full or fails; who waits for the answer lags, and the edge goes on."""
    while True:
        try:
            return await ask()
        except OperationalError as error:
            _log.warning("index_waits", error=str(error))
        await sleep(DISK_RETRY_INTERVAL_S)
