"""Many followers of one job at this edge: one reads FEED for all of them.

Each begins on its own, where its client left off, and joins the shared reader as soon as it is level with it; one that
does not keep up goes on alone again. A consumer each would cost the edge as much for every follower as for the first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import structlog
from anyio import CancelScope, Event
from anyio.abc import TaskGroup

from bus.port import BusError, Feed, FeedItem
from edge.services.mailbox import closing
from edge.services.stream import Bookmark, read_bookmark
from schemas.job import JobKey

ENOUGH = 2  # followers that are worth a shared reader

_log = structlog.get_logger()


class Mail(Protocol):
    """Where a follower's items go."""

    async def put(self, item: FeedItem) -> None:
        """Add; waits while there is no room."""
        ...

    def offer(self, item: FeedItem) -> bool:
        """Add if there is room; whether there was."""
        ...


class _Member:
    """A follower that shares. `last`: the id of what it was given last."""

    def __init__(self, mail: Mail, last: FeedItem) -> None:
        self._mail = mail
        self._floor: Bookmark | None = _place(last)
        self.last = last.id
        self.dropped = Event()

    def give(self, item: FeedItem, place: Bookmark) -> None:
        """Pass on what is new to it."""
        if self._floor is not None and _older(item, place, self._floor):
            return
        self._floor = None
        if not self.dropped.is_set() and self._mail.offer(item):
            self.last = item.id
        else:
            self.dropped.set()


class _Crowd:
    """The followers of one job."""

    def __init__(self, feed: Feed, key: JobKey) -> None:
        self._feed = feed
        self._key = key
        self._members: set[_Member] = set()
        self._place: Bookmark | None = None  # up to which all was given to everybody; None: nobody reads for all
        self.scope = CancelScope()
        self.followers = 0
        self.most = 0

    async def read(self) -> None:
        """For all, from the start: what was said twice must be known to have been said before."""
        with self.scope:
            try:
                async with closing(self._feed.follow(*self._key)) as items:
                    async for item in items:
                        self._place = _place(item)
                        for member in tuple(self._members):
                            member.give(item, self._place)
            except BusError as error:
                _log.warning("feed_not_shared", owner=self._key.owner, job_id=self._key.id, error=str(error))
        self._place = None
        for member in self._members:
            member.dropped.set()

    async def alone(self, mail: Mail, after: str) -> _Member:
        """Read by itself until it is level with the others; it is one of them then. Raises BusError."""
        async with closing(self._feed.follow(*self._key, after)) as items:
            async for item in items:
                await mail.put(item)
                if self._place is not None and not _older(item, _place(item), self._place):
                    # Before anything is waited for: what the others are given from now on it is given too.
                    member = _Member(mail, item)
                    self._members.add(member)
                    return member
        raise RuntimeError("FEED is followed without an end")

    def leave(self, member: _Member) -> None:
        """It goes, or goes on alone."""
        self._members.discard(member)


class Crowds:
    """The followed jobs of this edge."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._crowds: dict[JobKey, _Crowd] = {}

    async def pour(self, tasks: TaskGroup, key: JobKey, after: str, mail: Mail) -> None:
        """Fill `mail` with the job's items behind `after`, without end. Raises BusError."""
        with self._joined(tasks, key) as crowd:
            while True:
                member = await crowd.alone(mail, after)
                try:
                    await member.dropped.wait()
                finally:
                    crowd.leave(member)
                after = member.last

    @contextmanager
    def _joined(self, tasks: TaskGroup, key: JobKey) -> Iterator[_Crowd]:
        crowd = self._crowds.setdefault(key, _Crowd(self._feed, key))
        crowd.followers += 1
        if crowd.followers == ENOUGH and crowd.most < ENOUGH:
            tasks.start_soon(crowd.read)
        crowd.most = max(crowd.most, crowd.followers)
        try:
            yield crowd
        finally:
            crowd.followers -= 1
            if not crowd.followers:
                del self._crowds[key]
                crowd.scope.cancel()


def _place(item: FeedItem) -> Bookmark:
    place = read_bookmark(item.id)
    if place is None:
        raise ValueError(f"FEED gave the id {item.id!r}")
    return place


def _older(item: FeedItem, place: Bookmark, than: Bookmark) -> bool:
    """Whether `item` stands before `than`, or is a note there; never over two lives of FEED.

    A state at that very place may be a newer one that was read from STATE: its revision decides, later.
    """
    if place.epoch != than.epoch:
        return False
    return place.sequence < than.sequence or (place.sequence == than.sequence and item.change is None)
