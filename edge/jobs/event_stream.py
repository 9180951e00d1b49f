"""What a stream of events carries, and the id by which a client resumes it (PROTOCOLS 1, `events`)."""

import re
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from datetime import datetime
from typing import Literal, Protocol

import structlog
from anyio import CancelScope, Event, create_task_group, move_on_after, sleep_forever
from anyio.abc import TaskGroup
from msgspec import Struct, structs

from bus.interface import Bus, BusError, FeedItem, JobFeed, RecordChange, VersionedRecord
from edge.core import messages
from edge.core.bounded_queue import BoundedQueue, closing
from edge.hosts.registry import HostNotice, HostRegistry
from edge.jobs.view import NOBODY, Asker, JobViewBuilder
from schemas.events import RecordUnreadable
from schemas.feed import FeedMessage, LogEndMessage, LogMessage, ProgressMessage
from schemas.ids import JobKey
from schemas.job import Job
from schemas.job_view import JobView
from schemas.status import FINAL_STATUSES

EventKind = Literal["state", "progress", "log", "notice"]


class ProgressEvent(Struct, frozen=True):
    """How far a job is; `offset` rises through an attempt's output."""

    job_id: str
    at: datetime
    round: int
    attempt: int
    offset: int
    fraction: float
    stage: str | None
    done: int | None
    total: int | None


class LogEvent(Struct, frozen=True):
    """A piece of a job's output."""

    job_id: str
    at: datetime
    round: int
    attempt: int
    offset: int
    stream: str
    text: str


class NoticeEvent(Struct, frozen=True):
    """Something happened to a host."""

    kind: str
    host: str
    message: str
    at: datetime


EventData = JobView | ProgressEvent | LogEvent | NoticeEvent


class StreamItem(Struct, frozen=True):
    """One message of a stream. `id` goes back to `events` as `after`; a notice has the id of what came before it."""

    id: str
    kind: EventKind
    data: EventData


class ResumeToken(Struct, frozen=True):
    """Where a stream stands: FEED's own id, and the newest revision of STATE that was given.

    FEED reads STATE at every opening, so without the revision a client that resumes would get its last state twice.
    """

    feed_id: str
    revision: int = 0

    @property
    def epoch(self) -> str:
        """The life of FEED that the id belongs to."""
        return self.feed_id.partition("-")[0]

    @property
    def sequence(self) -> int:
        """The place in that life."""
        return int(self.feed_id.rpartition("-")[2])

    def __str__(self) -> str:
        return f"{self.feed_id}-{self.revision}"


# <epoch>-<FEED sequence>, and the revision behind it; both are counted in eight bytes.
_TOKEN_PATTERN = re.compile(r"(?P<feed>[^-]{1,64}-[0-9]{1,18})(?:-(?P<revision>[0-9]{1,18}))?\Z")


def parse_resume_token(text: str | None) -> ResumeToken | None:
    """The bookmark that a client sent; an id it cannot have from us stands for the start."""
    match = _TOKEN_PATTERN.match(text or "")
    return ResumeToken(match["feed"], int(match["revision"] or 0)) if match else None


# MERGED edge/services/crowds.py: Many followers of one job at this edge: one reads FEED for all of them. / Each
# begins on its own, where its client left off, and joins the shared reader as soon as it is level with it; one that /
# does not keep up goes on alone again. A consumer each would cost the edge as much for every follower as for the
# first.


SHARED_SUBSCRIBER_MINIMUM = 2  # followers that are worth a shared reader

_log = structlog.get_logger()


class FeedItemSink(Protocol):
    """Where a follower's items go."""

    async def put(self, item: FeedItem) -> None:
        """Add; waits while there is no room."""
        ...

    def try_put(self, item: FeedItem) -> bool:
        """Add if there is room; whether there was."""
        ...


class _SharedSubscriber:
    """A follower that shares. `last`: the id of what it was given last."""

    def __init__(self, mail: FeedItemSink, last: FeedItem) -> None:
        self._sink = mail
        self._joined_at: ResumeToken | None = _parse_position(last)
        self.last_id = last.id
        self.dropped = Event()

    def deliver(self, item: FeedItem, place: ResumeToken) -> None:
        """Pass on what is new to it."""
        if self._joined_at is not None and _is_older(item, place, self._joined_at):
            return
        self._joined_at = None
        if not self.dropped.is_set() and self._sink.try_put(item):
            self.last_id = item.id
        else:
            self.dropped.set()


class _SharedSubscription:
    """The followers of one job."""

    def __init__(self, feed: JobFeed, key: JobKey) -> None:
        self._feed = feed
        self._key = key
        self._subscribers: set[_SharedSubscriber] = set()
        self._position: ResumeToken | None = None  # up to which all was given to everybody; None: nobody reads for all
        self.scope = CancelScope()
        self.subscriber_count = 0
        self.peak_subscriber_count = 0

    async def read_for_all(self) -> None:
        """For all, from the start: what was said twice must be known to have been said before."""
        with self.scope:
            try:
                async with closing(self._feed.follow(*self._key)) as items:
                    async for item in items:
                        self._position = _parse_position(item)
                        for member in tuple(self._subscribers):
                            member.deliver(item, self._position)
            except BusError as error:
                _log.warning("feed_not_shared", owner=self._key.owner, job_id=self._key.id, error=str(error))
        self._position = None
        for member in self._subscribers:
            member.dropped.set()

    async def read_until_level(self, mail: FeedItemSink, after: str) -> _SharedSubscriber:
        """Read by itself until it is level with the others; it is one of them then. Raises BusError."""
        async with closing(self._feed.follow(*self._key, after)) as items:
            async for item in items:
                await mail.put(item)
                if self._position is not None and not _is_older(item, _parse_position(item), self._position):
                    # Before anything is waited for: what the others are given from now on it is given too.
                    member = _SharedSubscriber(mail, item)
                    self._subscribers.add(member)
                    return member
        raise RuntimeError("FEED is followed without an end")

    def remove(self, member: _SharedSubscriber) -> None:
        """It goes, or goes on alone."""
        self._subscribers.discard(member)


class SharedSubscriptions:
    """The followed jobs of this edge."""

    def __init__(self, feed: JobFeed) -> None:
        self._feed = feed
        self._subscriptions: dict[JobKey, _SharedSubscription] = {}

    async def follow_into(self, tasks: TaskGroup, key: JobKey, after: str, mail: FeedItemSink) -> None:
        """Fill `mail` with the job's items behind `after`, without end. Raises BusError."""
        with self._join(tasks, key) as crowd:
            while True:
                member = await crowd.read_until_level(mail, after)
                try:
                    await member.dropped.wait()
                finally:
                    crowd.remove(member)
                after = member.last_id

    @contextmanager
    def _join(self, tasks: TaskGroup, key: JobKey) -> Iterator[_SharedSubscription]:
        crowd = self._subscriptions.setdefault(key, _SharedSubscription(self._feed, key))
        crowd.subscriber_count += 1
        if (
            crowd.subscriber_count == SHARED_SUBSCRIBER_MINIMUM
            and crowd.peak_subscriber_count < SHARED_SUBSCRIBER_MINIMUM
        ):
            tasks.start_soon(crowd.read_for_all)
        crowd.peak_subscriber_count = max(crowd.peak_subscriber_count, crowd.subscriber_count)
        try:
            yield crowd
        finally:
            crowd.subscriber_count -= 1
            if not crowd.subscriber_count:
                del self._subscriptions[key]
                crowd.scope.cancel()


def _parse_position(item: FeedItem) -> ResumeToken:
    place = parse_resume_token(item.id)
    if place is None:
        raise ValueError(f"FEED gave the id {item.id!r}")
    return place


def _is_older(item: FeedItem, place: ResumeToken, than: ResumeToken) -> bool:
    """Whether `item` stands before `than`, or is a note there; never over two lives of FEED.

    A state at that very place may be a newer one that was read from STATE: its revision decides, later.
    """
    if place.epoch != than.epoch:
        return False
    return place.sequence < than.sequence or (place.sequence == than.sequence and item.change is None)


# MERGED edge/services/follow.py: Streams of what happens to one job or to all of an owner's (DESIGN 3, "Following").
# / FEED itself replays, re-opens over a broken connection, and adds from STATE what it did not hold. Here its items
# become / what clients read, and a job's stream ends.


LOG_END_TIMEOUT_S = 1.0  # how long the end of the log is waited for behind the final state
_BUFFER_LIMIT = 64

_ItemQueue = BoundedQueue[FeedItem | HostNotice | None]  # None: FEED cannot be read, the stream ends


class EventStreams:
    """Opens streams. `run` holds the tasks that read FEED for them and must be running before the first is opened."""

    def __init__(self, bus: Bus, viewer: JobViewBuilder, hosts: HostRegistry) -> None:
        self._bus = bus
        self._views = viewer
        self._hosts = hosts
        self._subscriptions = SharedSubscriptions(bus.feed)
        self._tasks: TaskGroup | None = None

    async def run(self) -> None:
        """Hold the readers, without end."""
        async with create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(sleep_forever)

    async def follow(
        self, owner: str, job_id: str | None = None, after: str | None = None, asker: Asker = NOBODY
    ) -> AsyncGenerator[StreamItem, None]:
        """What happened behind `after` (None: from the start), then what happens.

        A job's stream ends when the job has; an owner's has notices of hosts too and does not end. Close it when done.
        Raises BusError when the broker is away at the opening.
        """
        bookmark = await self._resume_token(after)
        stream = _EventTranslator(self._views, asker, bookmark)
        mail: _ItemQueue = BoundedQueue(_BUFFER_LIMIT)
        close = self._start_reader(mail, owner, job_id, bookmark.feed_id)
        try:
            while True:
                batch = await _get_batch(mail, LOG_END_TIMEOUT_S if job_id is not None and stream.final_job else None)
                for item in batch:
                    if item is None:
                        return
                    said = stream.translate(item)
                    if said is not None:
                        yield said
                if job_id is not None and await self._is_finished(stream, waited=not batch):
                    return
        finally:
            close()

    async def replay(
        self, owner: str, after: str | None = None, asker: Asker = NOBODY
    ) -> AsyncGenerator[StreamItem, None]:
        """What happened behind `after` to the owner's jobs, up to now; then it ends. Raises BusError."""
        bookmark = await self._resume_token(after)
        stream = _EventTranslator(self._views, asker, bookmark)
        async with aclosing(self._bus.feed.replay(owner, bookmark.feed_id)) as items:
            async for item in items:
                said = stream.translate(item)
                if said is not None:
                    yield said

    async def _resume_token(self, after: str | None) -> ResumeToken:
        """The client's bookmark, or the start: what is of another epoch says nothing about this one."""
        epoch = (await self._bus.feed.last_id()).partition("-")[0]
        bookmark = parse_resume_token(after)
        return bookmark if bookmark is not None and bookmark.epoch == epoch else ResumeToken(f"{epoch}-0")

    def _start_reader(self, mail: _ItemQueue, owner: str, job_id: str | None, after: str) -> Callable[[], None]:
        """Let FEED, and hosts for an owner's stream, fill `mail`; returns what ends that."""
        if self._tasks is None:
            raise RuntimeError("Follower.run must be running before a stream is opened")
        scope = CancelScope()
        self._tasks.start_soon(self._read_feed, self._tasks, scope, mail, owner, job_id, after)
        unlisten = self._hosts.subscribe(mail.try_put) if job_id is None else None

        def close() -> None:
            scope.cancel()
            if unlisten is not None:
                unlisten()

        return close

    async def _read_feed(  # noqa: PLR0913, PLR0917 - what is read, for whom, and how that ends
        self, tasks: TaskGroup, scope: CancelScope, mail: _ItemQueue, owner: str, job_id: str | None, after: str
    ) -> None:
        with scope:
            try:
                if job_id is None:
                    await mail.put_all(self._bus.feed.follow(owner, None, after))
                else:
                    await self._subscriptions.follow_into(tasks, JobKey(owner, job_id), after, mail)
            except BusError as error:
                _log.warning("feed_not_read", owner=owner, job_id=job_id, error=str(error))
                await mail.put(None)

    async def _is_finished(self, stream: "_EventTranslator", *, waited: bool) -> bool:
        """Whether the job's final state was given and nothing follows: no log any more, no retry meanwhile."""
        job = stream.final_job
        if job is None or not (waited or stream.is_log_ended(job)):
            return False
        try:
            entry = await self._bus.job_store.read(job.key)
        except (BusError, RecordUnreadable):
            return False
        if entry is None or entry.record.job == job:
            return True
        stream.final_job = None
        return False


class _EventTranslator:
    """Turns items into what clients read, and keeps what decides about the end."""

    def __init__(self, viewer: JobViewBuilder, asker: Asker, bookmark: ResumeToken) -> None:
        self._views = viewer
        self._asker = asker
        self._token = bookmark
        self._log_ended_attempt: tuple[int, int] | None = None
        self.final_job: Job | None = None

    def is_log_ended(self, job: Job) -> bool:
        """Whether no output of the job's last attempt can follow."""
        return job.attempt == 0 or self._log_ended_attempt == (job.round, job.attempt)

    def translate(self, item: FeedItem | HostNotice) -> StreamItem | None:
        """The item as clients read it; None for what is not told, or was told before."""
        if isinstance(item, HostNotice):
            text = messages.format_notice(item.kind, self._asker.language, item.wake_s)
            return self._make_item("notice", NoticeEvent(item.kind, item.host, text, item.at))
        self._token = structs.replace(self._token, feed_id=item.id)
        if item.change is not None:
            return self._translate_record(item.change)
        return None if item.message is None else self._translate_message(item.key, item.message)

    def _translate_record(self, change: RecordChange) -> StreamItem | None:
        if change.record is None:
            return None
        job = change.record.job
        self.final_job = job if job.status in FINAL_STATUSES else None
        if change.revision <= self._token.revision:
            return None
        self._token = structs.replace(self._token, revision=change.revision)
        view = self._views.build_without_progress(VersionedRecord(change.revision, change.record), self._asker)
        return self._make_item("state", view)

    def _translate_message(self, key: JobKey, note: FeedMessage) -> StreamItem | None:
        where = (key.id, note.at, note.position.round, note.position.attempt, note.position.offset)
        match note:
            case ProgressMessage():
                return self._make_item(
                    "progress", ProgressEvent(*where, note.fraction, note.stage, note.done, note.total)
                )
            case LogMessage():
                return self._make_item("log", LogEvent(*where, note.stream, note.text))
            case LogEndMessage():
                self._log_ended_attempt = (note.position.round, note.position.attempt)
                return None

    def _make_item(self, kind: EventKind, data: EventData) -> StreamItem:
        return StreamItem(str(self._token), kind, data)


async def _get_batch(mail: _ItemQueue, timeout_s: float | None) -> list[FeedItem | HostNotice | None]:
    """What has come, at least one item; nothing when none came within `timeout_s`."""
    if timeout_s is None:
        return await mail.get_batch(_BUFFER_LIMIT)
    with move_on_after(timeout_s):
        return await mail.get_batch(_BUFFER_LIMIT)
    return []
