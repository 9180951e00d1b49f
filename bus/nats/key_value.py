"""Values by key over the broker: the records of jobs in STATE, and the rows of the tables.

Records are read from the leader, written by compare-and-set, and erased without a trace. The edge reads rows from the
leader, a runner from whichever server answers first.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Set
from datetime import datetime, timedelta
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

import msgspec
import structlog

from bus.interface import (
    BrokerUnreachable,
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
from bus.nats.connection import reply_status
from bus.nats.jetstream import (
    ConsumedMessage,
    JetStreamClient,
    ReadRequest,
    StoredMessage,
    StreamInfo,
    open_consumer,
    read_all,
    wait_until_reconnected,
)
from bus.nats.replies import from_api_error
from bus.nats.topology import STATE, Bucket
from schemas.events import JobRecord, encode_record
from schemas.job import RECORD_LIMIT_BYTES, JobKey

T = TypeVar("T")

ALL_RECORD_SUBJECTS = "$KV.STATE.>"
RECORD_HISTORY_LIMIT = 64  # revisions of a key that readers get

log = structlog.get_logger(__name__)


class NatsJobStore:
    """STATE. A message with an empty body is a delete marker."""

    def __init__(self, jetstream: JetStreamClient) -> None:
        self._jetstream = jetstream

    async def read(self, key: JobKey) -> VersionedRecord | None:
        """Read from the leader: a replica may lag behind an acknowledged compare-and-set."""
        found = await self._jetstream.get_last(STATE.name, wire.record_subject(key))
        return wire.decode_versioned_record(found.seq, found.data) if found and found.data else None

    async def create(self, key: JobKey, record: JobRecord) -> int:
        """Write in one request, unless a record or a delete marker exists."""
        try:
            return await self._write(key, record, 0)
        except RevisionConflict:
            found = await self._jetstream.get_last(STATE.name, wire.record_subject(key))
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
        return await self._jetstream.publish(wire.record_subject(key), data, expect=expect)

    async def history(self, key: JobKey) -> list[VersionedRecord]:
        """Read the stored revisions; unreadable ones are left out."""
        items = await read_all(self._jetstream, ReadRequest(STATE.name, wire.record_subject(key)))
        if not items or not items[-1].data:
            return []
        return [
            VersionedRecord(item.sequence, record)
            for item in items[-RECORD_HISTORY_LIMIT:]
            if (record := wire.try_decode_record(item.data))
        ]

    async def delete(self, key: JobKey, revision: int | None) -> None:
        """Write the marker first: it is the compare-and-set, and it tells all readers of `changes`."""
        subject = wire.record_subject(key)
        marker = await self._jetstream.publish(subject, b"", expect=revision, marker=True)
        await self._jetstream.secure_delete_subject(STATE.name, subject, below=marker)

    async def sweep_delete_markers(self, now: datetime, age: timedelta) -> int:
        """Remove delete markers older than `age`, and what a crash left before them; return the number of keys."""
        before = int((now - age).timestamp() * 10**9)
        markers = [
            item for item in await self._last_messages() if _is_marker(item.headers) and item.stored_at_ns < before
        ]
        for item in markers:
            await self._jetstream.secure_delete_subject(STATE.name, item.subject, below=item.sequence)
            await self._jetstream.secure_delete_message(STATE.name, item.sequence)
        return len(markers)

    async def trim_history(self) -> int:
        """Erase revisions beyond the last 64 of each key; return the number of keys.

        The stream's own limit would drop them later, but leave their bytes on disk.
        """
        counts = await self._jetstream.count_by_subject(STATE.name, ALL_RECORD_SUBJECTS)
        too_long = [subject for subject, count in counts.items() if count > RECORD_HISTORY_LIMIT]
        for subject in too_long:
            items = await read_all(self._jetstream, ReadRequest(STATE.name, subject, headers_only=True))
            for item in items[:-RECORD_HISTORY_LIMIT]:
                await self._jetstream.secure_delete_message(STATE.name, item.sequence)
        return len(too_long)

    async def keys(self) -> set[JobKey]:
        """Read the headers of the last message of every key, without bodies."""
        return {
            wire.parse_record_key(item.subject) for item in await self._last_messages() if not _is_marker(item.headers)
        }

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
                record = wire.try_decode_record(item.data)
                if item.data and record is None:
                    log.error("record_unreadable", subject=item.subject, revision=item.sequence)
                yield RecordChange(item.sequence, wire.parse_record_key(item.subject), record)
                if not item.pending or item.sequence >= last:
                    yield CaughtUp()


def _is_marker(headers: Mapping[str, str]) -> bool:
    """Return whether a message only marks that its key was deleted."""
    return "KV-Operation" in headers


CONCURRENT_READ_LIMIT = 64
# A broker that loses writes in a crash gives their sequences to later ones, which then are not seen as new.
FULL_READ_INTERVAL_S = 30.0


class _KeptRows(NamedTuple, Generic[T]):
    """All rows of a bucket as of `last_sequence` of its stream.

    `keys`: also those of markers and unreadable rows. `unreadable`: the error of each row that cannot be read, by key.
    `read_at`: when all of them were last read, by the clock of the event loop.
    """

    created: str
    read_at: float
    last_sequence: int
    keys: Set[str]
    rows: Mapping[str, TableRow[T]]
    unreadable: Mapping[str, RowUnreadable]


class NatsTable(Generic[T]):
    """A bucket of rows of one type.

    `as_edge`: reads from the leader, and so sees what was just written also when other servers lag; deletes a row with
    its bytes. A runner, which may only write, leaves a delete marker, and reads without asking the leader.
    """

    def __init__(self, jetstream: JetStreamClient, bucket: Bucket, kind: type[T], *, as_edge: bool) -> None:
        self._jetstream = jetstream
        self._bucket = bucket
        self._decoder = msgspec.json.Decoder(kind)
        self._as_edge = as_edge
        self._kept: _KeptRows[T] | None = None

    async def get(self, key: str) -> TableRow[T] | None:
        """Read the row in one request: an edge from the stream's leader, a runner from any replica."""
        subject = wire.row_subject(self._bucket.name, key)
        return await (self._get_from_leader(subject) if self._as_edge else self._get_direct(subject))

    async def _get_from_leader(self, subject: str) -> TableRow[T] | None:
        found = await self._jetstream.get_last(self._bucket.stream, subject)
        if found is None or _is_marker(found.headers):
            return None
        return TableRow(found.seq, wire.decode_row(self._decoder, subject, found.data))

    async def _get_direct(self, subject: str) -> TableRow[T] | None:
        message = await self._jetstream.connection.request(f"$JS.API.DIRECT.GET.{self._bucket.stream}.{subject}")
        match reply_status(message):
            case "404":
                return None
            case "503":
                raise BrokerUnreachable(f"{subject}: no bucket answers: the broker is starting, try again")
            case str(code):
                raise from_api_error(subject, 0, f"status {code}")
        headers = message.headers or {}
        if _is_marker(headers):
            return None
        return TableRow(int(headers["Nats-Sequence"]), wire.decode_row(self._decoder, subject, message.data))

    async def put(self, key: str, value: T) -> int:
        """Write over the row, and erase its old value where the bucket asks for it."""
        revision = await self._write(key, value, None)
        if self._bucket.erases_old_values:
            await self._jetstream.secure_delete_subject(
                self._bucket.stream, wire.row_subject(self._bucket.name, key), below=revision
            )
        return revision

    async def create(self, key: str, value: T) -> int:
        """Write with the expectation that the subject is empty."""
        return await self._write(key, value, 0)

    async def update(self, key: str, value: T, revision: int) -> int:
        """Write after `revision`, and erase the old value where the bucket asks for it."""
        written = await self._write(key, value, revision)
        if self._bucket.erases_old_values:
            await self._jetstream.secure_delete_message(self._bucket.stream, revision)
        return written

    async def _write(self, key: str, value: T, expect: int | None) -> int:
        subject = wire.row_subject(self._bucket.name, key)
        return await self._jetstream.publish(subject, msgspec.json.encode(value), expect=expect)

    async def delete(self, key: str) -> None:
        """Erase the row as the edge, or leave a delete marker as a runner."""
        subject = wire.row_subject(self._bucket.name, key)
        if self._as_edge:
            await self._jetstream.secure_delete_subject(self._bucket.stream, subject)
        else:
            await self._jetstream.publish(subject, b"", marker=True)

    async def rows(self, prefix: str = "") -> TableRows[T]:
        """Read the keys in one request, then up to 64 rows at once; a row that disappears in between is left out."""
        if self._as_edge and self._bucket.is_polled and not prefix:
            return await self._read_kept_rows()
        return await self._read_rows(await self.keys(f"{prefix}>"))

    async def _read_rows(self, keys: Iterable[str]) -> TableRows[T]:
        waiting = iter(sorted(keys))
        found, unreadable = dict[str, TableRow[T]](), dict[str, RowUnreadable]()
        while batch := list(islice(waiting, CONCURRENT_READ_LIMIT)):
            rows = zip(batch, await asyncio.gather(*map(self._get_or_log, batch)), strict=True)
            for key, row in rows:
                if isinstance(row, TableRow):
                    found[key] = row
                elif row is not None:
                    unreadable[key] = row
        return TableRows(found, unreadable)

    async def _read_kept_rows(self) -> TableRows[T]:
        """Return all rows: those of the last call, with what was written since; or read all, if that is not enough."""
        now = asyncio.get_running_loop().time()
        info = await self._jetstream.stream_info(self._bucket.stream)
        kept = self._kept
        if kept is not None:
            is_old = now - kept.read_at >= FULL_READ_INTERVAL_S
            kept = None if is_old else await self._update_kept(kept, info)
        if kept is None:
            keys = await self.keys()
            rows = await self._read_rows(keys)
            kept = _KeptRows(info.created, now, info.state.last_seq, keys, rows, rows.unreadable)
        self._kept = kept
        return TableRows(kept.rows, kept.unreadable)

    async def _update_kept(self, kept: "_KeptRows[T]", info: StreamInfo) -> "_KeptRows[T] | None":
        """Return `kept` as of `info`; None if a row was removed since, or more were written than are worth the reading.

        Also None if a new message is gone, because a later write replaced it. `info` may not count that write.
        """
        written = range(kept.last_sequence + 1, info.state.last_seq + 1)
        is_same = kept.created == info.created and kept.last_sequence <= info.state.last_seq
        if not is_same or len(written) > CONCURRENT_READ_LIMIT:
            return None
        keys, rows, unreadable = set(kept.keys), dict(kept.rows), dict(kept.unreadable)
        for message in await asyncio.gather(*(self._jetstream.get(self._bucket.stream, one) for one in written)):
            if message is None:
                return None
            key = wire.parse_row_key(self._bucket.name, message.subject)
            keys.add(key)
            rows.pop(key, None)
            unreadable.pop(key, None)
            row = self._decode_or_log(message)
            if isinstance(row, TableRow):
                rows[key] = row
            elif row is not None:
                unreadable[key] = row
        is_complete = len(keys) == info.state.num_subjects  # no write was missed, so fewer means a removal
        if not is_complete:
            return None
        return kept._replace(last_sequence=info.state.last_seq, keys=keys, rows=rows, unreadable=unreadable)

    def _decode_or_log(self, message: StoredMessage) -> TableRow[T] | RowUnreadable | None:
        """Return the row of a message, or why it cannot be read; None if it is a delete marker."""
        if _is_marker(message.headers):
            return None
        try:
            return TableRow(message.seq, wire.decode_row(self._decoder, message.subject, message.data))
        except RowUnreadable as error:
            wire.log_unreadable_row(error)
            return error

    async def _get_or_log(self, key: str) -> TableRow[T] | RowUnreadable | None:
        """Return the row, or why it cannot be read."""
        try:
            return await self.get(key)
        except RowUnreadable as error:
            wire.log_unreadable_row(error)
            return error

    async def keys(self, pattern: str = ">") -> set[str]:
        """Read the subjects that hold a message."""
        stored = await self._jetstream.list_subjects(self._bucket.stream, wire.row_subject(self._bucket.name, pattern))
        return {wire.parse_row_key(self._bucket.name, subject) for subject in stored}
