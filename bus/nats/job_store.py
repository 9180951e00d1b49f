"""STATE over the broker: records read from the leader, written by compare-and-set, erased without a trace."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import structlog

from bus.interface import BrokerUnreachable, CaughtUp, MessageTooLarge, RecordChange, RevisionConflict, VersionedRecord
from bus.nats import subjects
from bus.nats.codec import decode_versioned_record, try_decode_record
from bus.nats.jetstream import JetStreamClient
from bus.nats.ordered_consumer import ConsumedMessage, ReadRequest, open_consumer, read_all, wait_until_reconnected
from bus.nats.topology import STATE
from schemas.events import JobRecord, encode_record
from schemas.ids import JobKey
from schemas.job import RECORD_LIMIT_BYTES

ALL_RECORD_SUBJECTS = "$KV.STATE.>"
HISTORY_LIMIT = 64  # revisions of a key that readers get

log = structlog.get_logger(__name__)


class NatsJobStore:
    """STATE. A message with an empty body is a delete marker."""

    def __init__(self, jetstream: JetStreamClient) -> None:
        self._jetstream = jetstream

    async def read(self, key: JobKey) -> VersionedRecord | None:
        """Read from the leader: a replica may lag behind an acknowledged compare-and-set."""
        found = await self._jetstream.get_last(STATE.name, subjects.record_subject(key))
        return decode_versioned_record(found.seq, found.data) if found and found.data else None

    async def create(self, key: JobKey, record: JobRecord) -> int:
        """Write in one request, unless a record or a delete marker exists."""
        try:
            return await self._write(key, record, 0)
        except RevisionConflict:
            found = await self._jetstream.get_last(STATE.name, subjects.record_subject(key))
            if found is None or found.data:
                raise
        return await self._write(key, record, found.seq)

    async def update(self, key: JobKey, record: JobRecord, revision: int) -> int:
        """Write the record in one request that expects `revision` as the last on its subject."""
        return await self._write(key, record, revision)

    async def _write(self, key: JobKey, record: JobRecord, expect: int) -> int:
        data = encode_record(record)
        if len(data) > RECORD_LIMIT_BYTES:
            raise MessageTooLarge(
                f"the record of {key.owner}/{key.id} has {len(data)} bytes, at most {RECORD_LIMIT_BYTES} are allowed"
            )
        return await self._jetstream.publish(subjects.record_subject(key), data, expect=expect)

    async def history(self, key: JobKey) -> list[VersionedRecord]:
        """Read the stored revisions; unreadable ones are left out."""
        items = await read_all(self._jetstream, ReadRequest(STATE.name, subjects.record_subject(key)))
        if not items or not items[-1].data:
            return []
        return [
            VersionedRecord(item.sequence, record)
            for item in items[-HISTORY_LIMIT:]
            if (record := try_decode_record(item.data))
        ]

    async def delete(self, key: JobKey, revision: int | None) -> None:
        """Write the marker first: it is the compare-and-set, and it tells all readers of `changes`."""
        subject = subjects.record_subject(key)
        marker = await self._jetstream.publish(subject, b"", expect=revision, marker=True)
        await self._jetstream.secure_delete_subject(STATE.name, subject, below=marker)

    async def sweep_delete_markers(self, now: datetime, age: timedelta) -> int:
        """Remove delete markers older than `age`, and what a crash left before them; return the number of keys."""
        before = int((now - age).timestamp() * 10**9)
        markers = [item for item in await self._last_messages() if _is_marker(item) and item.stored_at_ns < before]
        for item in markers:
            await self._jetstream.secure_delete_subject(STATE.name, item.subject, below=item.sequence)
            await self._jetstream.secure_delete_message(STATE.name, item.sequence)
        return len(markers)

    async def trim_history(self) -> int:
        """Erase revisions beyond the last 64 of each key; return the number of keys.

        The stream's own limit would drop them later, but leave their bytes on disk.
        """
        counts = await self._jetstream.count_by_subject(STATE.name, ALL_RECORD_SUBJECTS)
        too_long = [subject for subject, count in counts.items() if count > HISTORY_LIMIT]
        for subject in too_long:
            items = await read_all(self._jetstream, ReadRequest(STATE.name, subject, headers_only=True))
            for item in items[:-HISTORY_LIMIT]:
                await self._jetstream.secure_delete_message(STATE.name, item.sequence)
        return len(too_long)

    async def keys(self) -> set[JobKey]:
        """Read the headers of the last message of every key, without bodies."""
        return {subjects.parse_record_key(item.subject) for item in await self._last_messages() if not _is_marker(item)}

    async def _last_messages(self) -> list[ConsumedMessage]:
        return await read_all(
            self._jetstream, ReadRequest(STATE.name, ALL_RECORD_SUBJECTS, last_per_subject=True, headers_only=True)
        )

    async def changes(self, after: int = 0) -> AsyncIterator[RecordChange | CaughtUp]:
        """Open a new consumer after every break, after the last change that was yielded."""
        caught_up = False
        while True:
            try:
                async for change in self._read_changes(after):
                    if isinstance(change, CaughtUp):
                        if not caught_up:
                            caught_up = True
                            yield change
                    else:
                        after = change.revision
                        yield change
            except BrokerUnreachable:
                await wait_until_reconnected(self._jetstream)

    async def _read_changes(self, after: int) -> AsyncIterator[RecordChange | CaughtUp]:
        """Read with one consumer.

        A STATE that ends before `after` was restored from a backup: read it from its start.
        """
        last = (await self._jetstream.stream_info(STATE.name)).state.last_seq
        start = after if after <= last else 0
        reading = ReadRequest(STATE.name, ALL_RECORD_SUBJECTS, after_sequence=start, last_per_subject=not start)
        async with open_consumer(self._jetstream, reading) as consumer:
            if not consumer.pending:
                yield CaughtUp()
            while True:
                item = await consumer.next()
                record = try_decode_record(item.data)
                if item.data and record is None:
                    log.error("record_unreadable", subject=item.subject, revision=item.sequence)
                yield RecordChange(item.sequence, subjects.parse_record_key(item.subject), record)
                if not item.pending or item.sequence >= last:
                    yield CaughtUp()


def _is_marker(item: ConsumedMessage) -> bool:
    return "KV-Operation" in item.headers
