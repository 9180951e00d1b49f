"""A bucket in memory."""

from typing import Generic, TypeVar

import msgspec

from bus import subjects
from bus.memory.link import MemoryLink
from bus.memory.log import Log, Message
from bus.port import Row, Unreadable
from bus.rows import read_row, set_aside

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
        return self._row(held[-1]) if held else None

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
        found: dict[str, Row[T]] = {}
        for message in held:
            key = subjects.row_key(self._bucket, message.subject)
            found.pop(key, None)  # an earlier revision
            try:
                found[key] = self._row(message)
            except Unreadable as error:
                set_aside(error)
        return found

    def _row(self, message: Message) -> Row[T]:
        return Row(message.sequence, read_row(self._decoder, message.subject, message.data))

    async def keys(self, pattern: str = ">") -> set[str]:
        """Those of the rows."""
        await self._link.reach()
        held = self._log.behind(0, subjects.row(self._bucket, ""))
        keys = {subjects.row_key(self._bucket, message.subject) for message in held}
        return {key for key in keys if subjects.matches(pattern, key)}
