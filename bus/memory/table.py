"""A bucket in memory."""

from typing import Generic, TypeVar

import msgspec

from bus import subjects
from bus.memory.link import MemoryLink
from bus.memory.log import Log
from bus.port import Row

T = TypeVar("T")


class MemoryTable(Generic[T]):
    """`kind` is what a row holds."""

    def __init__(self, link: MemoryLink, log: Log, bucket: str, kind: type[T]) -> None:
        self._link = link
        self._log = log
        self._bucket = bucket
        self._decoder = msgspec.json.Decoder(kind)

    async def get(self, key: str) -> Row[T] | None:
        """The row."""
        await self._link.reach()
        held = self._log.of(subjects.row(self._bucket, key))
        return Row(held[-1].sequence, self._decoder.decode(held[-1].data)) if held else None

    async def put(self, key: str, value: T) -> int:
        """Write over."""
        return await self._write(key, value, None)

    async def create(self, key: str, value: T) -> int:
        """Write the first."""
        return await self._write(key, value, 0)

    async def update(self, key: str, value: T, revision: int) -> int:
        """Write behind `revision`."""
        return await self._write(key, value, revision)

    async def _write(self, key: str, value: T, expect: int | None) -> int:
        await self._link.reach()
        revision = self._log.append(subjects.row(self._bucket, key), msgspec.json.encode(value), expect=expect)
        if revision is None:
            raise AssertionError("only a message with an id can be a duplicate")
        return revision

    async def delete(self, key: str) -> None:
        """Remove it."""
        await self._link.reach()
        for message in self._log.of(subjects.row(self._bucket, key)):
            self._log.erase(message.sequence)

    async def rows(self, prefix: str = "") -> dict[str, Row[T]]:
        """All that start with `prefix`."""
        await self._link.reach()
        held = self._log.behind(0, subjects.row(self._bucket, prefix))
        return {subjects.row_key(self._bucket, m.subject): Row(m.sequence, self._decoder.decode(m.data)) for m in held}

    async def keys(self, pattern: str = ">") -> set[str]:
        """Those of the rows."""
        return {key for key in await self.rows() if subjects.matches(pattern, key)}
