"""FEED in memory. States are appended by STATE itself, as the broker sources them."""

from collections.abc import AsyncGenerator, AsyncIterator

from bus import notes, subjects
from bus.following import Given, Held, item_id, resume_at
from bus.memory.link import MemoryLink
from bus.memory.log import Message
from bus.memory.streams import Streams
from bus.port import Change, FeedItem
from bus.records import readable
from schemas.feed import Note, ProgressNote
from schemas.job import JobKey


class MemoryFeed:
    """What one connection does with FEED."""

    def __init__(self, link: MemoryLink, streams: Streams) -> None:
        self._link = link
        self._state, self._feed, self._epoch = streams

    async def publish(self, key: JobKey, note: Note) -> None:
        """Say it once."""
        await self._link.reach()
        self._feed.append(subjects.note(key, note), notes.encode(note), message_id=subjects.note_id(key, note))

    async def follow(self, owner: str, job_id: str | None = None, after: str | None = None) -> AsyncIterator[FeedItem]:
        """The owner's items behind `after`, without end."""
        start = resume_at(after, Held(self._epoch, self._feed.first, self._feed.last))
        given, at, heals = Given(), max(start, self._feed.last), -1
        prefix = f"feed.{owner}.{job_id}." if job_id else f"feed.{owner}."
        async for message in self._link.tail(self._feed, start, prefix):
            if message is not None:
                at = max(at, message.sequence)
                item = self._item(message)
            elif job_id and heals < self._link.comebacks:
                heals = self._link.comebacks
                item = self._unsaid(JobKey(owner, job_id), at, given)
            else:
                continue
            if item is not None and given.take(item):
                yield item

    async def held(self, owner: str, after: str | None = None) -> AsyncGenerator[FeedItem, None]:
        """The owner's items behind `after` that are there now."""
        await self._link.reach()
        start, given = resume_at(after, Held(self._epoch, self._feed.first, self._feed.last)), Given()
        for message in self._feed.behind(start, f"feed.{owner}."):
            await self._link.reach()
            item = self._item(message)
            if item is not None and given.take(item):
                yield item

    def _unsaid(self, key: JobKey, at: int, given: Given) -> FeedItem | None:
        """The state in STATE that FEED did not give."""
        held = self._state.of(subjects.record(key))
        if not held or held[-1].sequence <= given.revision(key):
            return None
        last = held[-1]
        return FeedItem(item_id(self._epoch, at), key, Change(last.sequence, key, readable(last.data)))

    def _item(self, message: Message) -> FeedItem | None:
        key, name = subjects.feed_key(message.subject), item_id(self._epoch, message.sequence)
        if message.source is not None:
            change = Change(message.source, key, readable(message.data))
            return FeedItem(name, key, change=change) if message.data else None
        note = notes.readable(message.data)
        return FeedItem(name, key, note=note) if note else None

    async def last_progress(self, key: JobKey) -> ProgressNote | None:
        """The latest progress."""
        await self._link.reach()
        held = self._feed.of(f"feed.{key.owner}.{key.id}.progress")
        note = notes.readable(held[-1].data) if held else None
        return note if isinstance(note, ProgressNote) else None

    async def notes(self, key: JobKey) -> list[Note]:
        """All notes held."""
        await self._link.reach()
        held = self._feed.behind(0, f"feed.{key.owner}.{key.id}.")
        return [note for m in held if m.source is None and (note := notes.readable(m.data))]

    async def position(self) -> str:
        """The id of the end."""
        await self._link.reach()
        return item_id(self._epoch, self._feed.last)

    async def erase(self, owner: str, job_id: str | None = None) -> int:
        """Nothing of it stays."""
        await self._link.reach()
        found = self._feed.behind(0, f"feed.{owner}.{job_id}." if job_id else f"feed.{owner}.")
        for message in found:
            self._feed.erase(message.sequence)
        return len(found)
