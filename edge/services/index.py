"""What cannot be read from one record: lists, counts, positions. Fed by STATE's own stream, rebuilt at every start.

The file answers searches, in a thread; ranks and counts are kept in memory and change with every step, so that none of
them costs more when more jobs wait.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from sqlite3 import Connection, OperationalError
from typing import NamedTuple, TypeVar

import structlog
from anyio import CancelScope, CapacityLimiter, Event, create_task_group, move_on_after, sleep, to_thread

from bus.port import CaughtUp, Change, Entry, Records
from edge.services import index_sql as sql
from edge.services.lines import Line, Lines
from edge.services.mailbox import Mailbox
from edge.services.pages import PAGE, PAGE_MAX, Filters, Page, job_cursor, read_cursor
from edge.services.room import until_there_is_room
from edge.services.standing import Standing, Step
from schemas.errors import Refused
from schemas.events import RecordUnreadable
from schemas.job import Job, JobKey, Pointer
from schemas.words import FINAL, Status

T = TypeVar("T")
Watcher = Callable[[Sequence[Step]], None]
Tap = Callable[[Sequence[Change]], None]

LOOK_AGAIN_S = (0.05, 0.2, 0.75)  # a host that has just claimed a job is faster than the index; then it is refused
REACH_S = 5.0  # a list waits at most this long for the caller's own last change
_BATCH = 500
_REST_S = 0.01  # a burst is taken over in few steps: each costs a hop to a thread, and the loop waits for the GIL
_LIVING = frozenset(Status) - FINAL

_log = structlog.get_logger()


class Mended(NamedTuple):
    """A change that the check against the key list found; it says nothing about how far the stream has come."""

    change: Change


class Count(NamedTuple):
    """What jobs are counted by."""

    owner: str
    endpoint: str
    pool: str
    status: Status


class Index:
    """`run` feeds it; every question but `position` and `counts` waits until it has caught up."""

    def __init__(self, path: Path, records: Records) -> None:
        self._path = path
        self._records = records
        self._db: Connection | None = None
        self._one_at_a_time = CapacityLimiter(1)
        self._revision = 0
        self._written: dict[str, int] = {}
        self._moved = Event()
        self._ready = Event()
        self._changes: Mailbox[Change | CaughtUp | Mended] = Mailbox(4 * _BATCH)
        self._watchers: list[Watcher] = []
        self._taps: list[Tap] = []
        self._counts: Counter[Count] = Counter()
        self.lines = Lines()

    @property
    def caught_up(self) -> bool:
        """Whether everything that was in STATE when `run` began has been taken over."""
        return self._ready.is_set()

    async def ready(self) -> None:
        """Wait until it has caught up."""
        await self._ready.wait()

    def watch(self, watcher: Watcher) -> None:
        """Call `watcher` with every batch of steps, those of the rebuilding too. It must not block."""
        self._watchers.append(watcher)

    def tap(self, tap: Tap) -> None:
        """Call `tap` with every batch of changes as STATE gives them, records and all, in its order; at the start with
        the last of every job. It must not block."""
        self._taps.append(tap)

    async def run(self) -> None:
        """Make the file anew and follow STATE, without end."""
        self._db = await until_there_is_room(partial(to_thread.run_sync, sql.create, self._path))
        try:
            async with create_task_group() as tasks:
                tasks.start_soon(self._changes.pour, self._records.changes())
                while True:
                    await self._absorb(await self._changes.take(_BATCH))
                    await sleep(_REST_S)
        finally:
            # In turn behind the questions already asked: SQLite crashes when it is closed under one.
            db, self._db = self._db, None
            with CancelScope(shield=True):
                await to_thread.run_sync(db.close, limiter=self._one_at_a_time)

    async def _absorb(self, items: Sequence[Change | CaughtUp | Mended]) -> None:
        streamed = [item for item in items if isinstance(item, Change)]
        changes = [*streamed, *(item.change for item in items if isinstance(item, Mended))]
        if changes:
            for tap in self._taps:
                tap(changes)
            self._take_over(await until_there_is_room(partial(self._in_turn, sql.absorb, changes)))
        if streamed:
            self._revision = streamed[-1].revision
        if any(isinstance(item, CaughtUp) for item in items):
            self._ready.set()
        self._moved.set()
        self._moved = Event()

    def _take_over(self, steps: Sequence[Step]) -> None:
        for before, after in steps:
            self._leave(before)
            self._enter(after)
        for watcher in self._watchers:
            watcher(steps)

    def _enter(self, place: Standing | None) -> None:
        if place is None:
            return
        self._counts[_count(place)] += 1
        if place.status is Status.QUEUED:
            self.lines.add(place.line, place.queued_us)

    def _leave(self, place: Standing | None) -> None:
        if place is None:
            return
        self._counts[_count(place)] -= 1
        if not self._counts[_count(place)]:
            del self._counts[_count(place)]
        if place.status is Status.QUEUED:
            self.lines.remove(place.line, place.queued_us)

    async def _ask(self, question: Callable[..., T], *about: object) -> T:
        if self._db is None:
            raise Refused("unavailable", "the edge is starting or stopping: try again", retry_after_s=5)
        try:
            return await self._in_turn(question, *about)
        except OperationalError as error:
            raise Refused("unavailable", f"the edge's disk fails ({error}): give it room", retry_after_s=5) from error

    async def _in_turn(self, question: Callable[..., T], *about: object) -> T:
        return await to_thread.run_sync(question, self._db, *about, limiter=self._one_at_a_time)

    async def _answer(self, question: Callable[..., T], *about: object) -> T:
        """`_ask`, once there is something to ask. Raises Refused `unavailable` when that takes too long."""
        with move_on_after(REACH_S):
            await self._ready.wait()
        if not self.caught_up:
            raise Refused(
                "unavailable", "the edge has just started and still reads its jobs: try again", retry_after_s=5
            )
        return await self._ask(question, *about)

    def written(self, owner: str, revision: int) -> None:
        """This edge wrote `revision` for `owner`: the owner's next list waits for it."""
        self._written[owner] = max(revision, self._written.get(owner, 0))

    async def reached(self, revision: int) -> bool:
        """Wait, at most REACH_S, until everything up to `revision` is in; whether it is."""
        with move_on_after(REACH_S):
            while self._revision < revision:
                await self._moved.wait()
        return self._revision >= revision

    async def own_writes(self, owner: str | None = None) -> bool:
        """`reached` for what this edge last wrote for `owner`, or for anybody."""
        last = max(self._written.values(), default=0) if owner is None else self._written.get(owner, 0)
        return await self.reached(last)

    async def vanished(self, key: JobKey) -> None:
        """Wait, at most REACH_S, until a deleted job is gone from here too."""
        with move_on_after(REACH_S):
            while True:
                moved = self._moved
                if await self._ask(sql.find, key) is None:
                    return
                await moved.wait()

    async def list(self, owner: str, filters: Filters, limit: int = PAGE, cursor: str | None = None) -> Page:
        """One page. New jobs never shift it: the cursor names the last job given. Raises Refused."""
        await self.own_writes(owner)
        limit = max(1, min(limit, PAGE_MAX))
        before = None if cursor is None else read_cursor(cursor)
        asked = sql.Asked(owner, filters.status, filters.endpoint, filters.priority, filters.tags, before, limit + 1)
        found = await self._answer(sql.page, asked)
        entries = tuple(found[:limit])
        return Page(entries, job_cursor(entries[-1].recorded.job) if len(found) > limit else None)

    def counts(self) -> dict[Count, int]:
        """How many jobs there are, by owner, endpoint, pool and status."""
        return dict(self._counts)

    async def retried(self, owner: str, endpoint: str) -> int:
        """How many of the owner's jobs were given another round."""
        return await self._answer(sql.retried, owner, endpoint)

    def position(self, job: Job, span: int) -> int | None:
        """Jobs that start before this one (0: next), None unless it is queued; `span` is the owner's window."""
        return self.lines.ahead(job, span) if job.status is Status.QUEUED and job.queued_at is not None else None

    async def front(self, line: Line, limit: int) -> Sequence[Pointer]:
        """The first `limit` queued jobs of a line."""
        return await self._answer(sql.front, line, limit)

    async def standings(self, keys: Iterable[JobKey]) -> dict[JobKey, Standing]:
        """The places of those of `keys` that are known."""
        return await self._answer(sql.find_all, list(keys))

    async def matching(self, condition: str, at_us: int, limit: int) -> Sequence[Entry]:
        """Up to `limit` jobs that one of the conditions of `index_sql` holds for."""
        return await self._answer(sql.matching, condition, at_us, limit)

    async def keys_matching(self, condition: str, at_us: int, limit: int) -> Sequence[JobKey]:
        """The keys of what `matching` finds: no record is read."""
        return await self._answer(sql.keys_matching, condition, at_us, limit)

    async def pools(self, condition: str, at_us: int, limit: int) -> set[str]:
        """The pools of what `matching` finds."""
        return await self._answer(sql.pools, condition, at_us, limit)

    async def living_jobs_naming(self, owner: str | None, sha256: str) -> Sequence[JobKey]:
        """Jobs that have not ended and name the asset; `owner` None: anybody's."""
        return await self._answer(sql.naming, sha256, owner, _LIVING)

    async def jobs_naming(self, owner: str, sha256: str) -> Sequence[JobKey]:
        """The owner's jobs, ended ones too, that name the asset."""
        return await self._answer(sql.naming, sha256, owner, tuple(Status))

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
            if await self._answer(question, *about):
                return True
            await sleep(wait_s)
        return await self._answer(question, *about)

    async def check(self) -> int:
        """Compare with STATE's key list and mend; how many jobs differed. A purge sends no message."""
        here = await self._answer(sql.keys)
        there = await self._records.keys()
        mends = [change for key in here ^ there if (change := await self._reread(key)) is not None]
        for change in mends:
            await self._changes.put(Mended(change))
        if mends:
            _log.warning("index_mended", jobs=len(mends))
        return len(mends)

    async def _reread(self, key: JobKey) -> Change | None:
        try:
            entry = await self._records.read(key)
        except RecordUnreadable:
            return None
        if entry is not None:
            return Change(entry.revision, key, entry.recorded)
        known = await self._ask(sql.find, key)
        return None if known is None else Change(known.revision + 1, key, None)


def _count(place: Standing) -> Count:
    return Count(place.owner, place.endpoint, place.pool, place.status)
