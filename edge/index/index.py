"""The job index: lists, counts and queue positions, which cannot be read from one record.

It follows the stream of STATE and is rebuilt at each start. A SQLite file answers searches, in a thread. Ranks and
counts are in memory and change with each batch, so that they cost the same however many jobs wait.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from sqlite3 import Connection, OperationalError
from typing import NamedTuple, TypeVar

import structlog
from anyio import CancelScope, Event, create_task_group, move_on_after, sleep

from bus.interface import CaughtUp, JobStore, RecordChange, VersionedRecord
from bus.notifier import Notifier
from edge.core.concurrency import BoundedQueue
from edge.index import sqlite as sql
from edge.index.rows import (
    DEFAULT_PAGE_LIMIT,
    PAGE_LIMIT,
    IndexRow,
    JobFilters,
    QueueKey,
    QueueRanks,
    RecordPage,
    RowChange,
    decode_cursor,
    make_job_cursor,
)
from schemas.events import RecordUnreadable
from schemas.job import FINAL_STATUSES, Job, JobKey, Pointer, Status
from schemas.problems import ProblemError

T = TypeVar("T")
ChangeSubscriber = Callable[[Sequence[RowChange]], None]
RecordSubscriber = Callable[[Sequence[RecordChange]], None]

# Delays before a query that says "no" is repeated: a host that has just claimed a job may be ahead of the index.
QUERY_RETRY_DELAYS_S = (0.05, 0.2, 0.75)
CATCH_UP_TIMEOUT_S = 5.0  # a list waits at most this long for the caller's own last change
DISK_RETRY_INTERVAL_S = 1.0
_BATCH_LIMIT = 500
_BATCH_INTERVAL_S = 0.01  # few large batches: each costs a switch to a thread, and the event loop waits for the GIL
_UNFINISHED = frozenset(Status) - FINAL_STATUSES

_log = structlog.get_logger()


class RepairedChange(NamedTuple):
    """A change found by the comparison with the key list. Unlike a change of the stream, it moves no position."""

    change: RecordChange


class JobCountKey(NamedTuple):
    """The properties by which jobs are counted."""

    owner: str
    endpoint: str
    pool: str
    status: Status


class JobIndex:
    """The index of this edge. `run` feeds it. Queries of the file wait until it has caught up."""

    def __init__(self, path: Path, records: JobStore) -> None:
        self._path = path
        self._records = records
        self._db: Connection | None = None
        # One thread, so SQLite gets one call at a time. anyio's own threads take 15 µs of processor time more a call.
        self._thread = ThreadPoolExecutor(1, "index")
        self._revision = 0
        self._replayed_revision: int | None = None
        self._own_revisions: dict[str, int] = {}
        self._advanced = Notifier()
        self._caught_up = Event()
        self._changes: BoundedQueue[RecordChange | CaughtUp | RepairedChange] = BoundedQueue(4 * _BATCH_LIMIT)
        self._change_subscribers: list[ChangeSubscriber] = []
        self._record_subscribers: list[RecordSubscriber] = []
        self._counts: Counter[JobCountKey] = Counter()
        self.queue_ranks = QueueRanks()

    @property
    def is_caught_up(self) -> bool:
        """Whether the index has everything that was in STATE when `run` started."""
        return self._caught_up.is_set()

    @property
    def replayed_revision(self) -> int | None:
        """The last revision that was in STATE when `run` started; None until it has been read. Later ones are new."""
        return self._replayed_revision

    async def wait_until_caught_up(self) -> None:
        """Wait until the index has everything that was in STATE when `run` started."""
        await self._caught_up.wait()

    def subscribe_changes(self, subscriber: ChangeSubscriber) -> None:
        """Call `subscriber` with each batch of row changes, also during the rebuild. It must not block."""
        self._change_subscribers.append(subscriber)

    def subscribe_records(self, subscriber: RecordSubscriber) -> None:
        """Call `subscriber` with each batch of record changes, in the order of STATE. It must not block.

        The rebuild at the start delivers the last record of each job.
        """
        self._record_subscribers.append(subscriber)

    async def run(self) -> None:
        """Create an empty file and follow STATE, until cancelled."""
        self._db = await retry_on_disk_error(partial(self._run_in_thread, sql.create_database, self._path))
        try:
            async with create_task_group() as tasks:
                tasks.start_soon(self._changes.put_all, self._records.changes())
                while True:
                    await self._apply_batch(await self._changes.get_batch(_BATCH_LIMIT))
                    await sleep(_BATCH_INTERVAL_S)
        finally:
            # After the queries in progress, which the thread finishes first: SQLite crashes if it is closed during one.
            db, self._db = self._db, None
            with CancelScope(shield=True):
                await self._run_in_thread(db.close)

    async def _apply_batch(self, items: Sequence[RecordChange | CaughtUp | RepairedChange]) -> None:
        streamed = [item for item in items if isinstance(item, RecordChange)]
        self._note_replayed(items)
        changes = [*streamed, *(item.change for item in items if isinstance(item, RepairedChange))]
        if changes:
            for subscriber in self._record_subscribers:
                subscriber(changes)
            self._apply_row_changes(await retry_on_disk_error(partial(self._run_exclusive, sql.apply_changes, changes)))
        if streamed:
            self._revision = streamed[-1].revision
        if any(isinstance(item, CaughtUp) for item in items):
            self._caught_up.set()
        self._advanced.notify()

    def _note_replayed(self, items: Sequence[RecordChange | CaughtUp | RepairedChange]) -> None:
        """Note the last revision before the marker, before subscribers get the changes that follow it."""
        revision = self._revision
        for item in items:
            if isinstance(item, RecordChange):
                revision = item.revision
            elif isinstance(item, CaughtUp) and self._replayed_revision is None:
                self._replayed_revision = revision

    def _apply_row_changes(self, changes: Sequence[RowChange]) -> None:
        for before, after in changes:
            self._remove_row(before)
            self._add_row(after)
        for subscriber in self._change_subscribers:
            subscriber(changes)

    def _add_row(self, row: IndexRow | None) -> None:
        if row is None:
            return
        self._counts[_count_key(row)] += 1
        if row.status is Status.QUEUED:
            self.queue_ranks.add(row.queue_key, row.queued_us)

    def _remove_row(self, row: IndexRow | None) -> None:
        if row is None:
            return
        self._counts[_count_key(row)] -= 1
        if not self._counts[_count_key(row)]:
            del self._counts[_count_key(row)]
        if row.status is Status.QUEUED:
            self.queue_ranks.remove(row.queue_key, row.queued_us)

    async def _query(self, query: Callable[..., T], *arguments: object) -> T:
        if self._db is None:
            raise ProblemError("unavailable", "the edge is starting or stopping: try again", retry_after_s=5)
        try:
            return await self._run_exclusive(query, *arguments)
        except OperationalError as error:
            raise ProblemError(
                "unavailable", f"the edge cannot use its disk ({error}): free some space on it", retry_after_s=5
            ) from error

    async def _run_exclusive(self, query: Callable[..., T], *arguments: object) -> T:
        return await self._run_in_thread(query, self._db, *arguments)

    async def _run_in_thread(self, call: Callable[..., T], *arguments: object) -> T:
        """Make a blocking call in the thread of the index, which makes one call after the other, in their order.

        The call is made even if the caller is cancelled while it waits.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)

    async def _query_when_ready(self, query: Callable[..., T], *arguments: object) -> T:
        """Query the file once the index has caught up. Raises ProblemError `unavailable` if that takes too long."""
        with move_on_after(CATCH_UP_TIMEOUT_S):
            await self._caught_up.wait()
        if not self.is_caught_up:
            raise ProblemError(
                "unavailable", "the edge has just started and is still reading its jobs: try again", retry_after_s=5
            )
        return await self._query(query, *arguments)

    def record_own_write(self, owner: str, revision: int) -> None:
        """Note that this edge wrote `revision` for `owner`, so that the owner's next list waits for it."""
        self._own_revisions[owner] = max(revision, self._own_revisions.get(owner, 0))

    async def wait_for_revision(self, revision: int) -> bool:
        """Wait at most CATCH_UP_TIMEOUT_S until the index has `revision`; return whether it has."""
        with move_on_after(CATCH_UP_TIMEOUT_S):
            await self._advanced.wait_until(lambda: self._revision >= revision)
        return self._revision >= revision

    async def wait_for_own_writes(self, owner: str | None = None) -> bool:
        """Wait for the last write of this edge for `owner`, or for any owner, as `wait_for_revision` does."""
        last = max(self._own_revisions.values(), default=0) if owner is None else self._own_revisions.get(owner, 0)
        return await self.wait_for_revision(last)

    async def wait_until_deleted(self, key: JobKey) -> None:
        """Wait at most CATCH_UP_TIMEOUT_S until a job that was deleted in STATE is not in the index any more."""
        with move_on_after(CATCH_UP_TIMEOUT_S):
            while True:
                advanced = self._advanced.next_notification()
                if await self._query(sql.find_row, key) is None:
                    return
                await advanced.wait()

    async def list_jobs(
        self, owner: str, filters: JobFilters, limit: int = DEFAULT_PAGE_LIMIT, cursor: str | None = None
    ) -> RecordPage:
        """Return one page. New jobs do not shift the next pages: the cursor names a job. Raises ProblemError."""
        await self.wait_for_own_writes(owner)
        limit = max(1, min(limit, PAGE_LIMIT))
        before = None if cursor is None else decode_cursor(cursor)
        found = await self._query_when_ready(sql.list_jobs, sql.ListQuery(owner, filters, before, limit + 1))
        records = tuple(found[:limit])
        return RecordPage(records, make_job_cursor(records[-1].record.job) if len(found) > limit else None)

    async def count_filtered_jobs(self, owner: str, filters: JobFilters) -> int:
        """Return the number of jobs that `list_jobs` would return on all pages together."""
        await self.wait_for_own_writes(owner)
        return await self._query_when_ready(sql.count_filtered_jobs, owner, filters)

    def count_jobs(self) -> dict[JobCountKey, int]:
        """Return the number of jobs by owner, endpoint, pool and status."""
        return dict(self._counts)

    async def count_retried(self, owner: str, endpoint: str) -> int:
        """Return the number of the owner's jobs of this endpoint that were retried by the user (round 2 or later)."""
        return await self._query_when_ready(sql.count_retried, owner, endpoint)

    def queue_position(self, job: Job, window_size: int) -> int | None:
        """Return the number of jobs that start before this one (0: it is next), or None if it is not queued.

        `window_size`: the size of the owner's publish window.
        """
        if job.status is not Status.QUEUED or job.queued_at is None:
            return None
        return self.queue_ranks.count_ahead(job, window_size)

    async def queue_head(self, queue: QueueKey, limit: int) -> Sequence[Pointer]:
        """Return the first `limit` jobs of a queue."""
        return await self._query_when_ready(sql.queue_head, queue, limit)

    async def find_rows(self, keys: Iterable[JobKey]) -> dict[JobKey, IndexRow]:
        """Return the rows of those of `keys` that are in the index."""
        return await self._query_when_ready(sql.find_rows, list(keys))

    async def find_jobs(self, condition: str, at_us: int, limit: int) -> Sequence[VersionedRecord]:
        """Return up to `limit` jobs for which `condition`, a constant of `edge.index.sqlite`, is true at `at_us`."""
        return await self._query_when_ready(sql.find_jobs, condition, at_us, limit)

    async def find_keys(self, condition: str, at_us: int, limit: int) -> Sequence[JobKey]:
        """Return the keys of the jobs that `find_jobs` would return, without reading the records."""
        return await self._query_when_ready(sql.find_keys, condition, at_us, limit)

    async def count_by_pool(self, condition: str, at_us: int, limit: int) -> dict[str, int]:
        """Return the number of the jobs that `find_jobs` would return, by pool."""
        return await self._query_when_ready(sql.count_by_pool, condition, at_us, limit)

    async def oldest_queued(self) -> dict[str, int]:
        """Return when the job of each endpoint that has waited longest was queued, in microseconds since 1970."""
        return await self._query(sql.oldest_queued)

    async def endpoint_figures(self, ended_since_us: int) -> dict[str, sql.EndpointFigures]:
        """Return the queued jobs of each endpoint, and those that ended since, in microseconds since 1970."""
        return await self._query_when_ready(sql.endpoint_figures, ended_since_us)

    async def find_unfinished_jobs_with_asset(self, owner: str | None, sha256: str) -> Sequence[JobKey]:
        """Return the unfinished jobs that use the asset, of `owner` or (None) of all owners."""
        return await self._query_when_ready(sql.find_jobs_with_asset, sha256, owner, _UNFINISHED)

    async def find_jobs_with_asset(self, owner: str, sha256: str) -> Sequence[JobKey]:
        """Return the owner's jobs that use the asset, also finished ones."""
        return await self._query_when_ready(sql.find_jobs_with_asset, sha256, owner, tuple(Status))

    async def holds_job(self, owner: str, host: str | None) -> bool:
        """Return whether `host` (None: any host) has a job of the owner.

        Repeats the query for about a second before it returns False: the index may lag.
        """
        return await self._query_repeatedly(sql.holds_job, owner, host)

    async def may_need(self, owner: str, host: str | None, sha256: str, endpoints: Sequence[str] | None) -> bool:
        """Return whether a job of the owner uses the asset and `host` may run it.

        `host` may run a job that it has claimed (None: any host), and a queued job of one of `endpoints` (None: any).
        Repeats the query for about a second before it returns False: the index may lag.
        """
        return await self._query_repeatedly(sql.may_need, owner, host, sha256, endpoints)

    async def _query_repeatedly(self, query: Callable[..., bool], *arguments: object) -> bool:
        """Return whether the query is true now or after one of the delays of QUERY_RETRY_DELAYS_S.

        The number of repetitions is bounded, so that denied requests cannot keep the index busy.
        """
        for delay_s in QUERY_RETRY_DELAYS_S:
            if await self._query_when_ready(query, *arguments):
                return True
            await sleep(delay_s)
        return await self._query_when_ready(query, *arguments)

    async def repair(self) -> int:
        """Compare the index with the key list of STATE and repair it; return the number of jobs that differed.

        Needed because a purge of STATE sends no message.
        """
        indexed = await self._query_when_ready(sql.list_keys)
        stored = await self._records.keys()
        changes = [change for key in indexed ^ stored if (change := await self._read_change(key)) is not None]
        for change in changes:
            await self._changes.put(RepairedChange(change))
        if changes:
            _log.warning("index_repaired", jobs=len(changes))
        return len(changes)

    async def _read_change(self, key: JobKey) -> RecordChange | None:
        try:
            entry = await self._records.read(key)
        except RecordUnreadable:
            return None
        if entry is not None:
            return RecordChange(entry.revision, key, entry.record)
        known = await self._query(sql.find_row, key)
        return None if known is None else RecordChange(known.revision + 1, key, None)


def _count_key(row: IndexRow) -> JobCountKey:
    return JobCountKey(row.owner, row.endpoint, row.pool, row.status)


async def retry_on_disk_error(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat `call` until the disk works again. The index lags meanwhile, but the edge keeps running.

    The index can be rebuilt from STATE, so a full disk must not end the edge.
    """
    while True:
        try:
            return await call()
        except OperationalError as error:
            _log.warning("index_write_failed", error=str(error))
        await sleep(DISK_RETRY_INTERVAL_S)
