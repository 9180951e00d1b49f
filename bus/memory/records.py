"""STATE in memory."""

from collections.abc import AsyncIterator

from bus import subjects
from bus.memory.link import MemoryLink
from bus.memory.log import Message
from bus.memory.streams import Streams
from bus.port import CaughtUp, Change, Conflict, Entry, TooLarge
from bus.records import entry, readable
from schemas.events import Recorded, encode
from schemas.job import RECORD_BYTES, JobKey


class MemoryRecords:
    """An empty body is a delete marker, as in the broker."""

    def __init__(self, link: MemoryLink, streams: Streams) -> None:
        self._link = link
        self._streams = streams
        self._state = streams.state

    async def read(self, key: JobKey) -> Entry | None:
        """The last record, unless deleted."""
        await self._link.reach()
        held = self._state.of(subjects.record(key))
        return entry(held[-1].sequence, held[-1].data) if held and held[-1].data else None

    async def create(self, key: JobKey, recorded: Recorded) -> int:
        """The first record, over a delete marker too."""
        await self._link.reach()
        held = self._state.of(subjects.record(key))
        if held and held[-1].data:
            raise Conflict(f"{key.owner}/{key.id} exists: read it")
        return self._append(key, encode(recorded), held[-1].sequence if held else 0)

    async def update(self, key: JobKey, recorded: Recorded, revision: int) -> int:
        """Behind `revision`, or Conflict."""
        await self._link.reach()
        return self._append(key, encode(recorded), revision)

    def _append(self, key: JobKey, data: bytes, expect: int) -> int:
        if len(data) > RECORD_BYTES:
            raise TooLarge(f"the record of {key.owner}/{key.id} has {len(data)} bytes, {RECORD_BYTES} are allowed")
        return self._streams.write(subjects.record(key), data, expect)

    async def history(self, key: JobKey) -> list[Entry]:
        """The kept revisions."""
        await self._link.reach()
        held = self._state.of(subjects.record(key))
        if not held or not held[-1].data:
            return []
        return [Entry(m.sequence, recorded) for m in held if (recorded := readable(m.data))]

    async def delete(self, key: JobKey, revision: int | None) -> None:
        """A marker, then nothing before it."""
        await self._link.reach()
        subject = subjects.record(key)
        marker = self._streams.write(subject, b"", revision)
        for message in self._state.of(subject):
            if message.sequence < marker:
                self._state.erase(message.sequence)

    async def changes(self, after: int = 0) -> AsyncIterator[Change | CaughtUp]:
        """STATE's own stream."""
        if after > self._state.last:
            after = 0
        whole, target, caught_up = after == 0, self._state.last, False
        async for message in self._link.tail(self._state, after, "$KV.STATE."):
            if message is None or (not caught_up and message.sequence > target):
                if not caught_up:
                    caught_up = True
                    yield CaughtUp()
                if message is None:
                    continue
            if whole and not caught_up and self._superseded(message):
                continue
            yield Change(message.sequence, subjects.record_key(message.subject), readable(message.data))

    def _superseded(self, message: Message) -> bool:
        held = self._state.of(message.subject)
        return bool(held) and held[-1].sequence != message.sequence

    async def keys(self) -> set[JobKey]:
        """Every living key."""
        await self._link.reach()
        last = {message.subject: message.data for message in self._state.behind(0, "$KV.STATE.")}
        return {subjects.record_key(subject) for subject, data in last.items() if data}
