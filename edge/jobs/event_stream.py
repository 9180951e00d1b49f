"""Streams of the events of one job or of all jobs of an owner, with resume and one shared subscription per job.

The feed port (`JobFeed`) replays, reconnects, and adds from STATE the last record if FEED does not have it. This module
turns the feed's items into the events that clients read, resumes a stream at a token, and ends the stream of a job
after the job's final state.
"""

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
from edge.core.concurrency import BoundedQueue, closing, translate_errors
from edge.hosts.registry import HostNotice, HostRegistry
from edge.jobs.view import NOBODY, Asker, JobViewBuilder
from schemas.events import FeedMessage, LogEndMessage, LogMessage, ProgressMessage, RecordUnreadable
from schemas.job import FINAL_STATUSES, Job, JobKey
from schemas.job_view import JobView

EventKind = Literal["state", "progress", "log", "notice"]

_log = structlog.get_logger()


class ProgressEvent(Struct, frozen=True):
    """The progress of a job. `offset` is the position in the output of the attempt; it rises."""

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
    """A piece of the output of a job."""

    job_id: str
    at: datetime
    round: int
    attempt: int
    offset: int
    stream: str
    text: str


class NoticeEvent(Struct, frozen=True):
    """A change of a host, such as `host_online`."""

    kind: str
    host: str
    message: str
    at: datetime


EventData = JobView | ProgressEvent | LogEvent | NoticeEvent


class StreamItem(Struct, frozen=True):
    """One item of a stream. `id` resumes the stream after this item; a notice has the id of the item before it."""

    id: str
    kind: EventKind
    data: EventData


class ResumeToken(Struct, frozen=True):
    """A position in a stream: the id of the last FEED item, and the newest revision of STATE that was sent.

    FEED reads STATE whenever it is opened. Without the revision, a client that resumes would get its last state twice.
    """

    feed_id: str
    revision: int = 0

    @property
    def epoch(self) -> str:
        """The epoch of the FEED stream that the id belongs to; a stream that is created again has a new one."""
        return self.feed_id.partition("-")[0]

    @property
    def sequence(self) -> int:
        """The sequence number in that epoch."""
        return int(self.feed_id.rpartition("-")[2])

    def __str__(self) -> str:
        return f"{self.feed_id}-{self.revision}"


# <epoch>-<FEED sequence>, optionally followed by the revision; both numbers have eight bytes.
_TOKEN_PATTERN = re.compile(r"(?P<feed>[^-]{1,64}-[0-9]{1,18})(?:-(?P<revision>[0-9]{1,18}))?\Z")


def parse_resume_token(text: str | None) -> ResumeToken | None:
    """Parse a client's token. Return None for one that this edge cannot have made: the stream starts at the start."""
    match = _TOKEN_PATTERN.match(text or "")
    return ResumeToken(match["feed"], int(match["revision"] or 0)) if match else None


SHARED_SUBSCRIBER_MINIMUM = 2  # with so many followers of a job, one reader serves them all
LOG_END_TIMEOUT_S = 1.0  # how long to wait after the final state for the end of the log
_BUFFER_LIMIT = 64


class FeedItemSink(Protocol):
    """The queue that receives the items of one follower."""

    async def put(self, item: FeedItem) -> None:
        """Append; wait while the queue is full."""
        ...

    def try_put(self, item: FeedItem) -> bool:
        """Append unless the queue is full; return whether the item was appended."""
        ...


class _SharedSubscriber:
    """A follower that is served by the shared reader. `last`: the last item that it received before it joined."""

    def __init__(self, sink: FeedItemSink, last: FeedItem) -> None:
        self._sink = sink
        self._joined_at: ResumeToken | None = _parse_position(last)
        self.last_id = last.id
        self.dropped = Event()

    def deliver(self, item: FeedItem, position: ResumeToken) -> None:
        """Append `item` unless the follower has it already. Drop the follower if its queue is full."""
        if self._joined_at is not None and _is_older(item, position, self._joined_at):
            return
        self._joined_at = None
        if not self.dropped.is_set() and self._sink.try_put(item):
            self.last_id = item.id
        else:
            self.dropped.set()


class _SharedSubscription:
    """The followers of one job at this edge, and the reader that they share."""

    def __init__(self, feed: JobFeed, key: JobKey) -> None:
        self._feed = feed
        self._key = key
        self._subscribers: set[_SharedSubscriber] = set()
        self._position: ResumeToken | None = None  # the last item of the shared reader; None while it does not run
        self.scope = CancelScope()
        self.subscriber_count = 0
        self.is_reader_started = False

    async def read_for_all(self) -> None:
        """Read FEED from the start and deliver each item to every subscriber, until cancelled.

        From the start, because FEED removes duplicates only of items that it has read itself.
        """
        with self.scope:
            try:
                async with closing(self._feed.follow(*self._key)) as items:
                    async for item in items:
                        self._position = _parse_position(item)
                        for subscriber in tuple(self._subscribers):
                            subscriber.deliver(item, self._position)
            except BusError as error:
                _log.warning("shared_feed_failed", owner=self._key.owner, job_id=self._key.id, error=str(error))
        self._position = None
        for subscriber in self._subscribers:
            subscriber.dropped.set()

    async def read_until_level(self, sink: FeedItemSink, after: str) -> _SharedSubscriber:
        """Read FEED for one follower until it has reached the shared reader, then subscribe it. Raises BusError."""
        async with closing(self._feed.follow(*self._key, after)) as items:
            async for item in items:
                await sink.put(item)
                if self._position is not None and not _is_older(item, _parse_position(item), self._position):
                    # Without an await in between: the subscriber must receive the shared reader's next item.
                    subscriber = _SharedSubscriber(sink, item)
                    self._subscribers.add(subscriber)
                    return subscriber
        raise RuntimeError("FEED ended, although it is followed without an end")

    def remove(self, subscriber: _SharedSubscriber) -> None:
        """Remove a subscriber that has disconnected, or that was too slow and reads alone again."""
        self._subscribers.discard(subscriber)


class SharedSubscriptions:
    """The jobs that are followed at this edge. Followers of the same job share one reader of FEED.

    Each follower first reads alone from the position of its client, and joins the shared reader when it has reached
    it. A follower that is too slow reads alone again. A consumer for each follower would cost the edge as much for
    every follower as for the first.
    """

    def __init__(self, feed: JobFeed) -> None:
        self._feed = feed
        self._subscriptions: dict[JobKey, _SharedSubscription] = {}

    async def follow_into(self, tasks: TaskGroup, key: JobKey, after: str, sink: FeedItemSink) -> None:
        """Put the job's items after the id `after` into `sink`, until cancelled. Raises BusError."""
        with self._join(tasks, key) as subscription:
            while True:
                subscriber = await subscription.read_until_level(sink, after)
                try:
                    await subscriber.dropped.wait()
                finally:
                    subscription.remove(subscriber)
                after = subscriber.last_id

    @contextmanager
    def _join(self, tasks: TaskGroup, key: JobKey) -> Iterator[_SharedSubscription]:
        subscription = self._subscriptions.setdefault(key, _SharedSubscription(self._feed, key))
        subscription.subscriber_count += 1
        # Only once: after an error of the shared reader each follower reads alone.
        if subscription.subscriber_count >= SHARED_SUBSCRIBER_MINIMUM and not subscription.is_reader_started:
            subscription.is_reader_started = True
            tasks.start_soon(subscription.read_for_all)
        try:
            yield subscription
        finally:
            subscription.subscriber_count -= 1
            if not subscription.subscriber_count:
                del self._subscriptions[key]
                subscription.scope.cancel()


def _parse_position(item: FeedItem) -> ResumeToken:
    position = parse_resume_token(item.id)
    if position is None:
        raise ValueError(f"an item of FEED has the invalid id {item.id!r}")
    return position


def _is_older(item: FeedItem, position: ResumeToken, than: ResumeToken) -> bool:
    """Return whether `item` is before `than`, or is a message at that position. Epochs cannot be compared: False.

    A state at the same position may be a newer one, read from STATE. Its revision decides later.
    """
    if position.epoch != than.epoch:
        return False
    return position.sequence < than.sequence or (position.sequence == than.sequence and item.change is None)


_ItemQueue = BoundedQueue[FeedItem | HostNotice | None]  # None: FEED cannot be read, the stream ends


class EventStreams:
    """Opens streams. `run` runs the tasks that read FEED; it must be running before the first stream is opened."""

    def __init__(self, bus: Bus, views: JobViewBuilder, hosts: HostRegistry) -> None:
        self._bus = bus
        self._views = views
        self._hosts = hosts
        self._subscriptions = SharedSubscriptions(bus.feed)
        self._tasks: TaskGroup | None = None

    async def run(self) -> None:
        """Run the readers of FEED, until cancelled."""
        async with create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(sleep_forever)

    async def follow(
        self, owner: str, job_id: str | None = None, after: str | None = None, asker: Asker = NOBODY
    ) -> AsyncGenerator[StreamItem, None]:
        """Yield the items after the token `after` (None: from the start), then new items as they happen.

        The stream of a job ends when the job has ended. The stream of an owner also has notices of hosts and does not
        end. The caller must close it. Raises BusError if the broker is away when the stream is opened.
        """
        token = await self._resume_token(after)
        translator = _EventTranslator(self._views, asker, token)
        queue: _ItemQueue = BoundedQueue(_BUFFER_LIMIT)
        close = self._start_reader(queue, owner, job_id, token.feed_id)
        try:
            while True:
                waits_for_end = job_id is not None and translator.final_job is not None
                batch = await _get_batch(queue, LOG_END_TIMEOUT_S if waits_for_end else None)
                for item in batch:
                    if item is None:
                        return
                    translated = translator.translate(item)
                    if translated is not None:
                        yield translated
                if job_id is not None and await self._is_finished(translator, timed_out=not batch):
                    return
        finally:
            close()

    async def wait_until_final(self, key: JobKey, timeout_s: float) -> None:
        """Return when the job has ended, or after `timeout_s`. Raises ProblemError `unavailable`."""
        with translate_errors(), move_on_after(timeout_s):
            last_id = await self._bus.feed.last_id()
            async with aclosing(self.follow(key.owner, key.id, last_id)) as events:
                async for event in events:
                    if isinstance(event.data, JobView) and event.data.status in FINAL_STATUSES:
                        break

    async def replay(
        self, owner: str, after: str | None = None, asker: Asker = NOBODY
    ) -> AsyncGenerator[StreamItem, None]:
        """Yield the items of the owner's jobs after the token `after` up to now. Raises BusError."""
        token = await self._resume_token(after)
        translator = _EventTranslator(self._views, asker, token)
        async with aclosing(self._bus.feed.replay(owner, token.feed_id)) as items:
            async for item in items:
                translated = translator.translate(item)
                if translated is not None:
                    yield translated

    async def is_at_end(self, owner: str, job_id: str, after: str) -> bool:
        """Return whether the job has ended and nothing follows the token `after`. Raises BusError.

        False if that cannot be said within LOG_END_TIMEOUT_S: the stream itself then tells.
        """
        token = await self._resume_token(after)
        if not token.sequence:
            return False
        translator = _EventTranslator(self._views, NOBODY, token)
        with move_on_after(LOG_END_TIMEOUT_S):
            async with closing(self._bus.feed.follow(owner, job_id, token.feed_id)) as items:
                async for item in items:
                    if translator.translate(item) is not None:
                        return False
        return translator.final_job is not None

    async def _resume_token(self, after: str | None) -> ResumeToken:
        """Return the client's token, or the start of FEED if the token is missing or of another epoch."""
        epoch = (await self._bus.feed.last_id()).partition("-")[0]
        token = parse_resume_token(after)
        return token if token is not None and token.epoch == epoch else ResumeToken(f"{epoch}-0")

    def _start_reader(self, queue: _ItemQueue, owner: str, job_id: str | None, after: str) -> Callable[[], None]:
        """Fill `queue` from FEED and, for an owner's stream, from host notices. Return a function that stops that."""
        if self._tasks is None:
            raise RuntimeError("EventStreams.run must be running before a stream is opened")
        scope = CancelScope()
        self._tasks.start_soon(self._read_feed, self._tasks, scope, queue, owner, job_id, after)
        unsubscribe = self._hosts.subscribe(queue.try_put) if job_id is None else None

        def close() -> None:
            scope.cancel()
            if unsubscribe is not None:
                unsubscribe()

        return close

    async def _read_feed(  # noqa: PLR0913, PLR0917 - a task has only positional arguments
        self, tasks: TaskGroup, scope: CancelScope, queue: _ItemQueue, owner: str, job_id: str | None, after: str
    ) -> None:
        with scope:
            try:
                if job_id is None:
                    await queue.put_all(self._bus.feed.follow(owner, None, after))
                else:
                    await self._subscriptions.follow_into(tasks, JobKey(owner, job_id), after, queue)
            except BusError as error:
                _log.warning("feed_read_failed", owner=owner, job_id=job_id, error=str(error))
                await queue.put(None)

    async def _is_finished(self, translator: "_EventTranslator", *, timed_out: bool) -> bool:
        """Return whether the job's final state was sent and nothing can follow: neither log lines nor a retry."""
        job = translator.final_job
        if job is None or not (timed_out or translator.is_log_ended(job)):
            return False
        try:
            entry = await self._bus.job_store.read(job.key)
        except (BusError, RecordUnreadable):
            return False
        if entry is None or entry.record.job == job:
            return True
        translator.final_job = None
        return False


class _EventTranslator:
    """Turns FEED items into stream items for one reader, and notes what decides the end of the stream."""

    def __init__(self, views: JobViewBuilder, asker: Asker, token: ResumeToken) -> None:
        self._views = views
        self._asker = asker
        self._token = token
        self._log_ended_attempt: tuple[int, int] | None = None
        self.final_job: Job | None = None

    def is_log_ended(self, job: Job) -> bool:
        """Return whether the output of the job's last attempt is complete."""
        return job.attempt == 0 or self._log_ended_attempt == (job.round, job.attempt)

    def translate(self, item: FeedItem | HostNotice) -> StreamItem | None:
        """Return the stream item, or None for an item that clients do not see or have received before."""
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

    def _translate_message(self, key: JobKey, message: FeedMessage) -> StreamItem | None:
        where = (key.id, message.at, message.position.round, message.position.attempt, message.position.offset)
        match message:
            case ProgressMessage():
                return self._make_item(
                    "progress", ProgressEvent(*where, message.fraction, message.stage, message.done, message.total)
                )
            case LogMessage():
                return self._make_item("log", LogEvent(*where, message.stream, message.text))
            case LogEndMessage():
                self._log_ended_attempt = (message.position.round, message.position.attempt)
                return None

    def _make_item(self, kind: EventKind, data: EventData) -> StreamItem:
        return StreamItem(str(self._token), kind, data)


async def _get_batch(queue: _ItemQueue, timeout_s: float | None) -> list[FeedItem | HostNotice | None]:
    """Return the waiting items, at least one; an empty list if none came within `timeout_s`."""
    if timeout_s is None:
        return await queue.get_batch(_BUFFER_LIMIT)
    with move_on_after(timeout_s):
        return await queue.get_batch(_BUFFER_LIMIT)
    return []
