"""A bucket of rows of one type. The edge reads them from the leader, a runner from whichever server answers first."""

import asyncio
from itertools import islice
from typing import Generic, TypeVar

import msgspec

from bus.interface import BrokerUnreachable, RowUnreadable, TableRow
from bus.nats import subjects
from bus.nats.codec import decode_row, log_unreadable_row
from bus.nats.connection import reply_status
from bus.nats.errors import from_api_error
from bus.nats.jetstream import JetStreamClient
from bus.nats.topology import Bucket

T = TypeVar("T")

CONCURRENT_READ_LIMIT = 64


class NatsTable(Generic[T]):
    """`as_edge`: it removes a row and its bytes, and reads what was just written, also of a cluster whose other servers
    lag behind. A runner, which may only write, leaves a delete marker, and reads without asking the leader.
    """

    def __init__(self, js: JetStreamClient, bucket: Bucket, kind: type[T], *, as_edge: bool) -> None:
        self._js = js
        self._bucket = bucket
        self._decoder = msgspec.json.Decoder(kind)
        self._as_edge = as_edge

    async def get(self, key: str) -> TableRow[T] | None:
        """One request."""
        subject = subjects.row_subject(self._bucket.name, key)
        return await (self._get_from_leader(subject) if self._as_edge else self._get_direct(subject))

    async def _get_from_leader(self, subject: str) -> TableRow[T] | None:
        found = await self._js.get_last(self._bucket.stream, subject)
        if found is None or "KV-Operation" in found.headers:
            return None
        return TableRow(found.seq, decode_row(self._decoder, subject, found.data))

    async def _get_direct(self, subject: str) -> TableRow[T] | None:
        message = await self._js.connection.request(f"$JS.API.DIRECT.GET.{self._bucket.stream}.{subject}")
        match reply_status(message):
            case "404":
                return None
            case "503":
                raise BrokerUnreachable(f"{subject}: no bucket answers; the broker is starting")
            case str(code):
                raise from_api_error(subject, 0, f"status {code}")
        headers = message.headers or {}
        if "KV-Operation" in headers:
            return None
        return TableRow(int(headers["Nats-Sequence"]), decode_row(self._decoder, subject, message.data))

    async def put(self, key: str, value: T) -> int:
        """Write over."""
        revision = await self._write(key, value, None)
        if self._bucket.erases_old_values:
            await self._js.secure_delete_subject(
                self._bucket.stream, subjects.row_subject(self._bucket.name, key), below=revision
            )
        return revision

    async def create(self, key: str, value: T) -> int:
        """Write the first."""
        return await self._write(key, value, 0)

    async def update(self, key: str, value: T, revision: int) -> int:
        """Write behind `revision`."""
        written = await self._write(key, value, revision)
        if self._bucket.erases_old_values:
            await self._js.secure_delete_message(self._bucket.stream, revision)
        return written

    async def _write(self, key: str, value: T, expect: int | None) -> int:
        subject = subjects.row_subject(self._bucket.name, key)
        return await self._js.publish(subject, msgspec.json.encode(value), expect=expect)

    async def delete(self, key: str) -> None:
        """Remove it."""
        subject = subjects.row_subject(self._bucket.name, key)
        if self._as_edge:
            await self._js.secure_delete_subject(self._bucket.stream, subject)
        else:
            await self._js.publish(subject, b"", marker=True)

    async def rows(self, prefix: str = "") -> dict[str, TableRow[T]]:
        """The keys in one request, then the rows, 64 at once; one that goes meanwhile is left out."""
        keys = iter(sorted(await self.keys(f"{prefix}>")))
        found: dict[str, TableRow[T]] = {}
        while some := list(islice(keys, CONCURRENT_READ_LIMIT)):
            rows = await asyncio.gather(*map(self._get_or_log, some))
            found |= {key: row for key, row in zip(some, rows, strict=True) if row is not None}
        return found

    async def _get_or_log(self, key: str) -> TableRow[T] | None:
        """The row; None also for one that cannot be read."""
        try:
            return await self.get(key)
        except RowUnreadable as error:
            log_unreadable_row(error)
            return None

    async def keys(self, pattern: str = ">") -> set[str]:
        """From the subjects that hold a message."""
        held = await self._js.list_subjects(self._bucket.stream, subjects.row_subject(self._bucket.name, pattern))
        return {subjects.parse_row_key(self._bucket.name, subject) for subject in held}
