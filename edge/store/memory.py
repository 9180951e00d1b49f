"""The store's fake: a dictionary that keeps the port's law and passes its suite; the edge's tests stand on it."""

import hashlib
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

from edge.store.pipeline import blocks, file_blocks
from edge.store.port import BLOCK, AssetStore, DigestMismatch, Stored, StoreFull, Survey, TooLarge
from schemas.asset import Digest


class MemoryStore(AssetStore):
    """Holds at most `capacity` bytes, trash included."""

    def __init__(self, fingerprint: str = "memory", capacity: int = 1 << 30) -> None:
        self._fingerprint = fingerprint
        self._capacity = capacity
        self._held: dict[Digest, bytes] = {}
        self._trash: dict[Digest, bytes] = {}

    async def write(self, chunks: AsyncIterator[bytes], expected: Digest | None, limit: int) -> Stored:
        body = bytearray()
        async for block in blocks(chunks):
            body += block
            if len(body) > limit:
                raise TooLarge(limit)
        got = hashlib.sha256(body).hexdigest()
        if expected not in (None, got):
            raise DigestMismatch(expected, got)
        if got not in self._held and len(body) > self._free():
            raise StoreFull
        self._held[got] = bytes(body)
        return Stored(got, len(body))

    async def stat(self, sha256: Digest) -> Stored | None:
        body = self._held.get(sha256)
        return None if body is None else Stored(sha256, len(body))

    async def read(self, sha256: Digest, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        body = self._held[sha256][start:stop]
        for at in range(0, len(body), BLOCK):
            yield body[at : at + BLOCK]

    async def trash(self, sha256: Digest) -> bool:
        return _move(sha256, self._held, self._trash)

    async def restore(self, sha256: Digest) -> bool:
        return _move(sha256, self._trash, self._held)

    async def erase(self, sha256: Digest) -> bool:
        return self._trash.pop(sha256, None) is not None

    async def survey(self) -> Survey:
        return Survey(self._fingerprint, self._free(), tuple(sorted(self._trash)))

    async def adopt(self, path: Path, sha256: Digest) -> Stored:
        return await self.write(file_blocks(path), sha256, sys.maxsize)

    async def link(self, sha256: Digest, ttl: timedelta) -> str | None:
        del sha256, ttl
        return None

    def _free(self) -> int:
        return self._capacity - sum(map(len, [*self._held.values(), *self._trash.values()]))


def _move(sha256: Digest, source: dict[Digest, bytes], target: dict[Digest, bytes]) -> bool:
    body = source.pop(sha256, None)
    if body is not None:
        target[sha256] = body
    return body is not None
