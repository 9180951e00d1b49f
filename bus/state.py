"""STATE: records read from the leader, written by compare-and-set, erased without a trace."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import structlog

from bus import subjects
from bus.jetstream import JetStream
from bus.ordered import Item, Reading, held, opened, until_back
from bus.port import CaughtUp, Change, Conflict, Entry, TooLarge, Unreachable
from bus.records import entry, readable
from bus.topology import STATE
from schemas.events import Recorded, encode
from schemas.job import RECORD_BYTES, JobKey

ALL = "$KV.STATE.>"
HISTORY = 64  # revisions of a key that are told

log = structlog.get_logger(__name__)


class StateRecords:
    """An empty body is a delete marker."""

    def __init__(self, js: JetStream) -> None:
        self._js = js

    async def read(self, key: JobKey) -> Entry | None:
        """The last record, from the leader: a replica may lag behind a compare-and-set that was acknowledged."""
        found = await self._js.last(STATE.name, subjects.record(key))
        return entry(found.seq, found.data) if found and found.data else None

    async def create(self, key: JobKey, recorded: Recorded) -> int:
        """One request, unless a record or a delete marker is there."""
        try:
            return await self._write(key, recorded, 0)
        except Conflict:
            found = await self._js.last(STATE.name, subjects.record(key))
            if found is None or found.data:
                raise
        return await self._write(key, recorded, found.seq)

    async def update(self, key: JobKey, recorded: Recorded, revision: int) -> int:
        """One request."""
        return await self._write(key, recorded, revision)

    async def _write(self, key: JobKey, recorded: Recorded, expect: int) -> int:
        data = encode(recorded)
        if len(data) > RECORD_BYTES:
            raise TooLarge(f"the record of {key.owner}/{key.id} has {len(data)} bytes, {RECORD_BYTES} are allowed")
        return await self._js.write(subjects.record(key), data, expect=expect)

    async def history(self, key: JobKey) -> list[Entry]:
        """The kept revisions; unreadable ones are left out."""
        items = await held(self._js, Reading(STATE.name, subjects.record(key)))
        if not items or not items[-1].data:
            return []
        return [Entry(item.sequence, recorded) for item in items[-HISTORY:] if (recorded := readable(item.data))]

    async def delete(self, key: JobKey, revision: int | None) -> None:
        """The marker first: it is the compare-and-set, and it tells every reader of `changes`."""
        subject = subjects.record(key)
        marker = await self._js.write(subject, b"", expect=revision, marker=True)
        await self._js.erase(STATE.name, subject, below=marker)

    async def sweep(self, now: datetime, age: timedelta) -> int:
        """Remove delete markers older than `age`, and what a crash left before them; how many keys went."""
        before = int((now - age).timestamp() * 10**9)
        markers = [item for item in await self._heads() if _is_marker(item) and item.at < before]
        for item in markers:
            await self._js.erase(STATE.name, item.subject, below=item.sequence)
            await self._js.overwrite(STATE.name, item.sequence)
        return len(markers)

    async def trim(self) -> int:
        """Erase revisions beyond the last HISTORY, before the stream's own limit drops them and leaves their bytes on
        the disk; of how many keys."""
        held_of = await self._js.counts(STATE.name, ALL)
        long = [subject for subject, count in held_of.items() if count > HISTORY]
        for subject in long:
            items = await held(self._js, Reading(STATE.name, subject, headers_only=True))
            for item in items[:-HISTORY]:
                await self._js.overwrite(STATE.name, item.sequence)
        return len(long)

    async def keys(self) -> set[JobKey]:
        """From the headers of the last message of every key; no body travels."""
        return {subjects.record_key(item.subject) for item in await self._heads() if not _is_marker(item)}

    async def _heads(self) -> list[Item]:
        return await held(self._js, Reading(STATE.name, ALL, last_per_subject=True, headers_only=True))

    async def changes(self, after: int = 0) -> AsyncIterator[Change | CaughtUp]:
        """Opens anew behind the last change given after every break."""
        caught_up = False
        while True:
            try:
                async for step in self._read(after):
                    if isinstance(step, CaughtUp):
                        if not caught_up:
                            caught_up = True
                            yield step
                    else:
                        after = step.revision
                        yield step
            except Unreachable:
                await until_back(self._js)

    async def _read(self, after: int) -> AsyncIterator[Change | CaughtUp]:
        """One consumer's life. STATE that ends before `after` was restored from a backup: it is read from its start."""
        last = (await self._js.info(STATE.name)).state.last_seq
        behind = after if after <= last else 0
        reading = Reading(STATE.name, ALL, behind=behind, last_per_subject=not behind)
        async with opened(self._js, reading) as consumer:
            if not consumer.pending:
                yield CaughtUp()
            while True:
                item = await consumer.next()
                recorded = readable(item.data)
                if item.data and recorded is None:
                    log.error("a record cannot be read, it is set aside", subject=item.subject, revision=item.sequence)
                yield Change(item.sequence, subjects.record_key(item.subject), recorded)
                if not item.pending or item.sequence >= last:
                    yield CaughtUp()


def _is_marker(item: Item) -> bool:
    return "KV-Operation" in item.headers
