"""Streams of what happens to one job or to all of an owner's (DESIGN 3, "Following").

FEED itself replays, re-opens over a broken connection, and adds from STATE what it did not hold. Here its items become
what clients read, and a job's stream ends.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import structlog
from anyio import CancelScope, create_task_group, move_on_after, sleep_forever
from anyio.abc import TaskGroup
from msgspec import structs

from bus.port import Bus, BusError, Change, Entry, FeedItem
from edge.services import messages
from edge.services.crowds import Crowds
from edge.services.hosts import HostNotice, HostWatch
from edge.services.mailbox import Mailbox
from edge.services.stream import (
    Bookmark,
    EventData,
    Kind,
    LogEvent,
    NoticeEvent,
    ProgressEvent,
    StreamItem,
    read_bookmark,
)
from edge.services.view import NOBODY, Asker, Viewer
from schemas.events import RecordUnreadable
from schemas.feed import LogEnd, LogNote, Note, ProgressNote
from schemas.job import Job, JobKey
from schemas.words import FINAL

LOG_END_S = 1.0  # how long the end of the log is waited for behind the final state
_BUFFER = 64

_Mail = Mailbox[FeedItem | HostNotice | None]  # None: FEED cannot be read, the stream ends

_log = structlog.get_logger()


class Follower:
    """Opens streams. `run` holds the tasks that read FEED for them and must be running before the first is opened."""

    def __init__(self, bus: Bus, viewer: Viewer, hosts: HostWatch) -> None:
        self._bus = bus
        self._viewer = viewer
        self._hosts = hosts
        self._crowds = Crowds(bus.feed)
        self._tasks: TaskGroup | None = None

    async def run(self) -> None:
        """Hold the readers, without end."""
        async with create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(sleep_forever)

    async def events(
        self, owner: str, job_id: str | None = None, after: str | None = None, asker: Asker = NOBODY
    ) -> AsyncGenerator[StreamItem, None]:
        """What happened behind `after` (None: from the start), then what happens.

        A job's stream ends when the job has; an owner's has notices of hosts too and does not end. Close it when done.
        Raises BusError when the broker is away at the opening.
        """
        bookmark = await self._resumed(after)
        stream = _Stream(self._viewer, asker, bookmark)
        mail: _Mail = Mailbox(_BUFFER)
        close = self._open(mail, owner, job_id, bookmark.feed)
        try:
            while True:
                batch = await _next(mail, LOG_END_S if job_id is not None and stream.final else None)
                for item in batch:
                    if item is None:
                        return
                    said = stream.say(item)
                    if said is not None:
                        yield said
                if job_id is not None and await self._over(stream, waited=not batch):
                    return
        finally:
            close()

    async def held(
        self, owner: str, after: str | None = None, asker: Asker = NOBODY
    ) -> AsyncGenerator[StreamItem, None]:
        """What happened behind `after` to the owner's jobs, up to now; then it ends. Raises BusError."""
        bookmark = await self._resumed(after)
        stream = _Stream(self._viewer, asker, bookmark)
        async with aclosing(self._bus.feed.held(owner, bookmark.feed)) as items:
            async for item in items:
                said = stream.say(item)
                if said is not None:
                    yield said

    async def _resumed(self, after: str | None) -> Bookmark:
        """The client's bookmark, or the start: what is of another epoch says nothing about this one."""
        epoch = (await self._bus.feed.position()).partition("-")[0]
        bookmark = read_bookmark(after)
        return bookmark if bookmark is not None and bookmark.epoch == epoch else Bookmark(f"{epoch}-0")

    def _open(self, mail: _Mail, owner: str, job_id: str | None, after: str) -> Callable[[], None]:
        """Let FEED, and hosts for an owner's stream, fill `mail`; returns what ends that."""
        if self._tasks is None:
            raise RuntimeError("Follower.run must be running before a stream is opened")
        scope = CancelScope()
        self._tasks.start_soon(self._read, self._tasks, scope, mail, owner, job_id, after)
        unlisten = self._hosts.listen(mail.offer) if job_id is None else None

        def close() -> None:
            scope.cancel()
            if unlisten is not None:
                unlisten()

        return close

    async def _read(  # noqa: PLR0913, PLR0917 - what is read, for whom, and how that ends
        self, tasks: TaskGroup, scope: CancelScope, mail: _Mail, owner: str, job_id: str | None, after: str
    ) -> None:
        with scope:
            try:
                if job_id is None:
                    await mail.pour(self._bus.feed.follow(owner, None, after))
                else:
                    await self._crowds.pour(tasks, JobKey(owner, job_id), after, mail)
            except BusError as error:
                _log.warning("feed_not_read", owner=owner, job_id=job_id, error=str(error))
                await mail.put(None)

    async def _over(self, stream: "_Stream", *, waited: bool) -> bool:
        """Whether the job's final state was given and nothing follows: no log any more, no retry meanwhile."""
        job = stream.final
        if job is None or not (waited or stream.log_ended(job)):
            return False
        try:
            entry = await self._bus.records.read(job.key)
        except (BusError, RecordUnreadable):
            return False
        if entry is None or entry.recorded.job == job:
            return True
        stream.final = None
        return False


class _Stream:
    """Turns items into what clients read, and keeps what decides about the end."""

    def __init__(self, viewer: Viewer, asker: Asker, bookmark: Bookmark) -> None:
        self._viewer = viewer
        self._asker = asker
        self._bookmark = bookmark
        self._ended: tuple[int, int] | None = None
        self.final: Job | None = None

    def log_ended(self, job: Job) -> bool:
        """Whether no output of the job's last attempt can follow."""
        return job.attempt == 0 or self._ended == (job.round, job.attempt)

    def say(self, item: FeedItem | HostNotice) -> StreamItem | None:
        """The item as clients read it; None for what is not told, or was told before."""
        if isinstance(item, HostNotice):
            text = messages.notice(item.kind, self._asker.language, item.wake_s)
            return self._item("notice", NoticeEvent(item.kind, item.host, text, item.at))
        self._bookmark = structs.replace(self._bookmark, feed=item.id)
        if item.change is not None:
            return self._state(item.change)
        return None if item.note is None else self._note(item.key, item.note)

    def _state(self, change: Change) -> StreamItem | None:
        if change.recorded is None:
            return None
        job = change.recorded.job
        self.final = job if job.status in FINAL else None
        if change.revision <= self._bookmark.revision:
            return None
        self._bookmark = structs.replace(self._bookmark, revision=change.revision)
        view = self._viewer.state(Entry(change.revision, change.recorded), self._asker)
        return self._item("state", view)

    def _note(self, key: JobKey, note: Note) -> StreamItem | None:
        where = (key.id, note.at, note.place.round, note.place.attempt, note.place.offset)
        match note:
            case ProgressNote():
                return self._item("progress", ProgressEvent(*where, note.fraction, note.stage, note.done, note.total))
            case LogNote():
                return self._item("log", LogEvent(*where, note.stream, note.text))
            case LogEnd():
                self._ended = (note.place.round, note.place.attempt)
                return None

    def _item(self, kind: Kind, data: EventData) -> StreamItem:
        return StreamItem(str(self._bookmark), kind, data)


async def _next(mail: _Mail, timeout_s: float | None) -> list[FeedItem | HostNotice | None]:
    """What has come, at least one item; nothing when none came within `timeout_s`."""
    if timeout_s is None:
        return await mail.take(_BUFFER)
    with move_on_after(timeout_s):
        return await mail.take(_BUFFER)
    return []
