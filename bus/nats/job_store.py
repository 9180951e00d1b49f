"""STATE: records read from the leader, written by compare-and-set, erased without a trace."""

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
HISTORY_LIMIT = 64  # revisions of a key that are told

log = structlog.get_logger(__name__)


class NatsJobStore:
    """An empty body is a delete marker."""

    def __init__(self, js: JetStreamClient) -> None:
        self._js = js

    async def read(self, key: JobKey) -> VersionedRecord | None:
        """The last record, from the leader: a replica may lag behind a compare-and-set that was acknowledged."""
        found = await self._js.get_last(STATE.name, subjects.record_subject(key))
        return decode_versioned_record(found.seq, found.data) if found and found.data else None

    async def create(self, key: JobKey, recorded: JobRecord) -> int:
        """One request, unless a record or a delete marker is there."""
        try:
            return await self._write(key, recorded, 0)
        except RevisionConflict:
            found = await self._js.get_last(STATE.name, subjects.record_subject(key))
            if found is None or found.data:
                raise
        return await self._write(key, recorded, found.seq)

    async def update(self, key: JobKey, recorded: JobRecord, revision: int) -> int:
        """One request."""
        return await self._write(key, recorded, revision)

    async def _write(self, key: JobKey, recorded: JobRecord, expect: int) -> int:
        data = encode_record(recorded)
        if len(data) > RECORD_LIMIT_BYTES:
            raise MessageTooLarge(
                f"the record of {key.owner}/{key.id} has {len(data)} bytes, {RECORD_LIMIT_BYTES} are allowed"
            )
        return await self._js.publish(subjects.record_subject(key), data, expect=expect)

    async def history(self, key: JobKey) -> list[VersionedRecord]:
        """The kept revisions; unreadable ones are left out."""
        items = await read_all(self._js, ReadRequest(STATE.name, subjects.record_subject(key)))
        if not items or not items[-1].data:
            return []
        return [
            VersionedRecord(item.sequence, recorded)
            for item in items[-HISTORY_LIMIT:]
            if (recorded := try_decode_record(item.data))
        ]

    async def delete(self, key: JobKey, revision: int | None) -> None:
        """The marker first: it is the compare-and-set, and it tells every reader of `changes`."""
        subject = subjects.record_subject(key)
        marker = await self._js.publish(subject, b"", expect=revision, marker=True)
        await self._js.secure_delete_subject(STATE.name, subject, below=marker)

    async def sweep_delete_markers(self, now: datetime, age: timedelta) -> int:
        """Remove delete markers older than `age`, and what a crash left before them; how many keys went."""
        before = int((now - age).timestamp() * 10**9)
        markers = [item for item in await self._last_messages() if _is_marker(item) and item.stored_at_ns < before]
        for item in markers:
            await self._js.secure_delete_subject(STATE.name, item.subject, below=item.sequence)
            await self._js.secure_delete_message(STATE.name, item.sequence)
        return len(markers)

    async def trim_history(self) -> int:
        """Erase revisions beyond the last HISTORY, before the stream's own limit drops them and leaves their bytes on
        the disk; of how many keys."""
        held_of = await self._js.count_by_subject(STATE.name, ALL_RECORD_SUBJECTS)
        long = [subject for subject, count in held_of.items() if count > HISTORY_LIMIT]
        for subject in long:
            items = await read_all(self._js, ReadRequest(STATE.name, subject, headers_only=True))
            for item in items[:-HISTORY_LIMIT]:
                await self._js.secure_delete_message(STATE.name, item.sequence)
        return len(long)

    async def keys(self) -> set[JobKey]:
        """From the headers of the last message of every key; no body travels."""
        return {subjects.parse_record_key(item.subject) for item in await self._last_messages() if not _is_marker(item)}

    async def _last_messages(self) -> list[ConsumedMessage]:
        return await read_all(
            self._js, ReadRequest(STATE.name, ALL_RECORD_SUBJECTS, last_per_subject=True, headers_only=True)
        )

    async def changes(self, after: int = 0) -> AsyncIterator[RecordChange | CaughtUp]:
        """Opens anew behind the last change given after every break."""
        caught_up = False
        while True:
            try:
                async for step in self._read_changes(after):
                    if isinstance(step, CaughtUp):
                        if not caught_up:
                            caught_up = True
                            yield step
                    else:
                        after = step.revision
                        yield step
            except BrokerUnreachable:
                await wait_until_reconnected(self._js)

    async def _read_changes(self, after: int) -> AsyncIterator[RecordChange | CaughtUp]:
        """One consumer's life. STATE that ends before `after` was restored from a backup: it is read from its start."""
        last = (await self._js.stream_info(STATE.name)).state.last_seq
        behind = after if after <= last else 0
        reading = ReadRequest(STATE.name, ALL_RECORD_SUBJECTS, after_sequence=behind, last_per_subject=not behind)
        async with open_consumer(self._js, reading) as consumer:
            if not consumer.pending:
                yield CaughtUp()
            while True:
                item = await consumer.next()
                recorded = try_decode_record(item.data)
                if item.data and recorded is None:
                    log.error("a record cannot be read, it is set aside", subject=item.subject, revision=item.sequence)
                yield RecordChange(item.sequence, subjects.parse_record_key(item.subject), recorded)
                if not item.pending or item.sequence >= last:
                    yield CaughtUp()


def _is_marker(item: ConsumedMessage) -> bool:
    return "KV-Operation" in item.headers
