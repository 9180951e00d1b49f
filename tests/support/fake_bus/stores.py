"""STATE, tables and USAGE in memory."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Generic, TypeVar

import msgspec

from bus.interface import (
    AuditEntry,
    AuditPage,
    CaughtUp,
    MessageTooLarge,
    RecordChange,
    RevisionConflict,
    RowUnreadable,
    TableRow,
    TableRows,
    VersionedRecord,
)
from bus.nats import wire
from bus.nats.topology import AUDIT
from bus.nats.wire import (
    decode_row,
    decode_versioned_record,
    log_unreadable_row,
    try_decode_record,
)
from schemas.events import JobRecord, encode_record
from schemas.installation import AuditEvent
from schemas.job import RECORD_LIMIT_BYTES, JobKey
from schemas.job_view import JobUsage, PowerUsage, UsageRow
from tests.support.fake_bus.connection import FakeConnection
from tests.support.fake_bus.stream import FakeMessage, FakeStatePair, FakeStream


class FakeJobStore:
    """STATE over one connection. A message with an empty body is a delete marker, as in the broker."""

    def __init__(self, connection: FakeConnection, streams: FakeStatePair) -> None:
        self._connection = connection
        self._streams = streams
        self._state = streams.state

    async def read(self, key: JobKey) -> VersionedRecord | None:
        """Return the last record, unless it was deleted."""
        await self._connection.require_connected()
        held = self._state.messages_of(wire.record_subject(key))
        return decode_versioned_record(held[-1].sequence, held[-1].data) if held and held[-1].data else None

    async def create(self, key: JobKey, record: JobRecord) -> int:
        """Write the first record, also over a delete marker."""
        await self._connection.require_connected()
        held = self._state.messages_of(wire.record_subject(key))
        if held and held[-1].data:
            raise RevisionConflict(f"{key.owner}/{key.id} exists: read it")
        return self._append(key, encode_record(record), held[-1].sequence if held else 0)

    async def update(self, key: JobKey, record: JobRecord, revision: int) -> int:
        """Write after `revision`, or raise RevisionConflict."""
        await self._connection.require_connected()
        return self._append(key, encode_record(record), revision)

    def _append(self, key: JobKey, data: bytes, expect: int) -> int:
        if len(data) > RECORD_LIMIT_BYTES:
            raise MessageTooLarge(
                f"the record of {key.owner}/{key.id} has {len(data)} bytes, at most {RECORD_LIMIT_BYTES} are allowed"
            )
        return self._streams.write(wire.record_subject(key), data, expect)

    async def history(self, key: JobKey) -> list[VersionedRecord]:
        """Return the stored revisions."""
        await self._connection.require_connected()
        held = self._state.messages_of(wire.record_subject(key))
        if not held or not held[-1].data:
            return []
        return [VersionedRecord(m.sequence, record) for m in held if (record := try_decode_record(m.data))]

    async def delete(self, key: JobKey, revision: int | None) -> None:
        """Write a marker and delete everything before it."""
        await self._connection.require_connected()
        subject = wire.record_subject(key)
        marker = self._streams.write(subject, b"", revision)
        for message in self._state.messages_of(subject):
            if message.sequence < marker:
                self._state.delete(message.sequence)

    async def changes(self, after: int = 0) -> AsyncIterator[RecordChange | CaughtUp]:
        """Yield the messages of STATE."""
        if after > self._state.last:
            after = 0
        whole, target, caught_up = after == 0, self._state.last, False
        async for message in self._connection.tail(self._state, after, "$KV.STATE."):
            if message is None or (not caught_up and message.sequence > target):
                if not caught_up:
                    caught_up = True
                    yield CaughtUp()
                if message is None:
                    continue
            if whole and not caught_up and self._superseded(message):
                continue
            yield RecordChange(
                message.sequence, wire.parse_record_key(message.subject), try_decode_record(message.data)
            )

    def _superseded(self, message: FakeMessage) -> bool:
        held = self._state.messages_of(message.subject)
        return bool(held) and held[-1].sequence != message.sequence

    async def keys(self) -> set[JobKey]:
        """Return the key of every job that exists."""
        await self._connection.require_connected()
        last = {message.subject: message.data for message in self._state.messages_after(0, "$KV.STATE.")}
        return {wire.parse_record_key(subject) for subject, data in last.items() if data}


T = TypeVar("T")


class FakeTable(Generic[T]):
    """A bucket over one connection. `kind` is the type of its rows."""

    def __init__(self, connection: FakeConnection, log: FakeStream, bucket: str, kind: type[T]) -> None:
        self._connection = connection
        self._log = log
        self._bucket = bucket
        self._decoder = msgspec.json.Decoder(kind)

    async def get(self, key: str) -> TableRow[T] | None:
        """Return the row."""
        await self._connection.require_connected()
        held = self._log.messages_of(wire.row_subject(self._bucket, key))
        return self._row(held[-1]) if held else None

    async def put(self, key: str, value: T) -> int:
        """Write over the row."""
        return await self._write(key, value, None)

    async def create(self, key: str, value: T) -> int:
        """Write a new row."""
        return await self._write(key, value, 0)

    async def update(self, key: str, value: T, revision: int) -> int:
        """Write after `revision`."""
        return await self._write(key, value, revision)

    async def _write(self, key: str, value: T, expect: int | None) -> int:
        await self._connection.require_connected()
        revision = self._log.append(wire.row_subject(self._bucket, key), msgspec.json.encode(value), expect=expect)
        if revision is None:
            raise AssertionError("only a message with an id can be a duplicate")
        return revision

    async def delete(self, key: str) -> None:
        """Remove the row."""
        await self._connection.require_connected()
        for message in self._log.messages_of(wire.row_subject(self._bucket, key)):
            self._log.delete(message.sequence)

    async def rows(self, prefix: str = "") -> TableRows[T]:
        """Return all rows whose key starts with `prefix`."""
        await self._connection.require_connected()
        held = self._log.messages_after(0, wire.row_subject(self._bucket, prefix))
        found, unreadable = dict[str, TableRow[T]](), dict[str, RowUnreadable]()
        for message in held:
            key = wire.parse_row_key(self._bucket, message.subject)
            found.pop(key, None)  # an earlier revision
            unreadable.pop(key, None)
            try:
                found[key] = self._row(message)
            except RowUnreadable as error:
                log_unreadable_row(error)
                unreadable[key] = error
        return TableRows(found, unreadable)

    def _row(self, message: FakeMessage) -> TableRow[T]:
        return TableRow(message.sequence, decode_row(self._decoder, message.subject, message.data))

    async def keys(self, pattern: str = ">") -> set[str]:
        """Return the keys that match."""
        await self._connection.require_connected()
        held = self._log.messages_after(0, wire.row_subject(self._bucket, ""))
        keys = {wire.parse_row_key(self._bucket, message.subject) for message in held}
        return {key for key in keys if wire.subject_matches(pattern, key)}


class FakeUsageLog:
    """USAGE over one connection. `since` is ignored: the clock of the broker is not a calendar."""

    def __init__(self, connection: FakeConnection, log: FakeStream) -> None:
        self._connection = connection
        self._log = log

    async def add(self, row: UsageRow) -> bool:
        """Write to an empty subject."""
        await self._connection.require_connected()
        try:
            self._log.append(wire.usage_subject(row), msgspec.json.encode(row), expect=0)
        except RevisionConflict:
            return False
        return True

    async def job_rows(self, since: datetime) -> list[JobUsage]:
        """Return all rows of jobs."""
        return [
            row for data in await self._read_rows(wire.JOB_USAGE_SUBJECTS) if (row := wire.try_decode_job_usage(data))
        ]

    async def power_rows(self, since: datetime) -> list[PowerUsage]:
        """Return all rows of hosts."""
        return [
            row
            for data in await self._read_rows(wire.POWER_USAGE_SUBJECTS)
            if (row := wire.try_decode_power_usage(data))
        ]

    async def last_job_row(self) -> JobUsage | None:
        """Return the newest row of a job."""
        held = await self._read_rows(wire.JOB_USAGE_SUBJECTS)
        return wire.try_decode_job_usage(held[-1]) if held else None

    async def delete_owner(self, owner: str) -> int:
        """Delete the rows one by one."""
        await self._connection.require_connected()
        found = self._log.messages_after(0, wire.owner_usage_subjects(owner).removesuffix(">"))
        for message in found:
            self._log.delete(message.sequence)
        return len(found)

    async def _read_rows(self, pattern: str) -> list[bytes]:
        await self._connection.require_connected()
        return [message.data for message in self._log.messages_after(0, pattern.removesuffix(">"))]


class FakeAuditStream:
    """AUDIT over one connection."""

    def __init__(self, connection: FakeConnection, log: FakeStream) -> None:
        self._connection = connection
        self._log = log
        self._decoder = msgspec.json.Decoder(AuditEvent)

    async def append(self, event_id: str, event: AuditEvent) -> bool:
        """Write to an empty subject."""
        await self._connection.require_connected()
        try:
            self._log.append(wire.row_subject(AUDIT.name, event_id), msgspec.json.encode(event), expect=0)
        except RevisionConflict:
            return False
        return True

    async def page(self, before: int | None, span: int) -> AuditPage:
        """Return the events of `span` sequences."""
        await self._connection.require_connected()
        end = self._log.last + 1 if before is None else min(before, self._log.last + 1)
        first = self._log.first
        start = max(first, end - span)
        entries = []
        for message in self._log.messages_after(start - 1, wire.row_subject(AUDIT.name, "")):
            if message.sequence < end:
                try:
                    event = decode_row(self._decoder, message.subject, message.data)
                except RowUnreadable as error:
                    log_unreadable_row(error)
                else:
                    entries.append(AuditEntry(message.sequence, event))
        return AuditPage(tuple(reversed(entries)), start if start > first else None)
