"""A bucket of rows of one type. The edge reads them from the leader, a runner from whichever server answers first."""

import asyncio
from itertools import islice
from typing import Generic, TypeVar

import msgspec

from bus import subjects
from bus.buckets import Bucket
from bus.errors import answered
from bus.jetstream import JetStream
from bus.port import Row, Unreachable, Unreadable
from bus.rows import read_row, set_aside
from bus.wire import status

T = TypeVar("T")

AT_ONCE = 64


class BucketTable(Generic[T]):
    """`as_edge`: it removes a row and its bytes, and reads what was just written, also of a cluster whose other servers
    lag behind. A runner, which may only write, leaves a delete marker, and reads without asking the leader.
    """

    def __init__(self, js: JetStream, bucket: Bucket, kind: type[T], *, as_edge: bool) -> None:
        self._js = js
        self._bucket = bucket
        self._decoder = msgspec.json.Decoder(kind)
        self._as_edge = as_edge

    async def get(self, key: str) -> Row[T] | None:
        """One request."""
        subject = subjects.row(self._bucket.name, key)
        return await (self._lead(subject) if self._as_edge else self._near(subject))

    async def _lead(self, subject: str) -> Row[T] | None:
        found = await self._js.last(self._bucket.stream, subject)
        if found is None or "KV-Operation" in found.headers:
            return None
        return Row(found.seq, read_row(self._decoder, subject, found.data))

    async def _near(self, subject: str) -> Row[T] | None:
        message = await self._js.wire.request(f"$JS.API.DIRECT.GET.{self._bucket.stream}.{subject}")
        match status(message):
            case "404":
                return None
            case "503":
                raise Unreachable(f"{subject}: no bucket answers; the broker is starting")
            case str(code):
                raise answered(subject, 0, f"status {code}")
        headers = message.headers or {}
        if "KV-Operation" in headers:
            return None
        return Row(int(headers["Nats-Sequence"]), read_row(self._decoder, subject, message.data))

    async def put(self, key: str, value: T) -> int:
        """Write over."""
        revision = await self._write(key, value, None)
        if self._bucket.personal:
            await self._js.erase(self._bucket.stream, subjects.row(self._bucket.name, key), below=revision)
        return revision

    async def create(self, key: str, value: T) -> int:
        """Write the first."""
        return await self._write(key, value, 0)

    async def update(self, key: str, value: T, revision: int) -> int:
        """Write behind `revision`."""
        written = await self._write(key, value, revision)
        if self._bucket.personal:
            await self._js.overwrite(self._bucket.stream, revision)
        return written

    async def _write(self, key: str, value: T, expect: int | None) -> int:
        subject = subjects.row(self._bucket.name, key)
        return await self._js.write(subject, msgspec.json.encode(value), expect=expect)

    async def delete(self, key: str) -> None:
        """Remove it."""
        subject = subjects.row(self._bucket.name, key)
        if self._as_edge:
            await self._js.erase(self._bucket.stream, subject)
        else:
            await self._js.write(subject, b"", marker=True)

    async def rows(self, prefix: str = "") -> dict[str, Row[T]]:
        """The keys in one request, then the rows, 64 at once; one that goes meanwhile is left out."""
        keys = iter(sorted(await self.keys(f"{prefix}>")))
        found: dict[str, Row[T]] = {}
        while some := list(islice(keys, AT_ONCE)):
            rows = await asyncio.gather(*map(self._readable, some))
            found |= {key: row for key, row in zip(some, rows, strict=True) if row is not None}
        return found

    async def _readable(self, key: str) -> Row[T] | None:
        """The row; None also for one that cannot be read."""
        try:
            return await self.get(key)
        except Unreadable as error:
            set_aside(error)
            return None

    async def keys(self, pattern: str = ">") -> set[str]:
        """From the subjects that hold a message."""
        held = await self._js.subjects(self._bucket.stream, subjects.row(self._bucket.name, pattern))
        return {subjects.row_key(self._bucket.name, subject) for subject in held}
