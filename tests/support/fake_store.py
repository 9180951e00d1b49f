"""An asset store in memory for tests of the edge. It passes the contract suite of `edge.store.port`."""

import hashlib
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

from edge.store.file_io import read_file_blocks, rechunk
from edge.store.port import (
    BLOCK_BYTES,
    AssetStore,
    AssetStoreFull,
    AssetTooLarge,
    DigestMismatch,
    SharedObjects,
    StoredAsset,
    Survey,
)
from schemas.asset import Digest


class FakeStore(AssetStore):
    """A store of at most `capacity` bytes, including the trash."""

    def __init__(self, fingerprint: str = "memory", capacity: int = 1 << 30) -> None:
        self._fingerprint = fingerprint
        self._capacity = capacity
        self._assets: dict[Digest, bytes] = {}
        self._trash: dict[Digest, bytes] = {}

    async def write(self, chunks: AsyncIterator[bytes], expected: Digest | None, limit: int) -> StoredAsset:
        body = bytearray()
        async for block in rechunk(chunks):
            body += block
            if len(body) > limit:
                raise AssetTooLarge(limit)
        got = hashlib.sha256(body).hexdigest()
        if expected not in (None, got):
            raise DigestMismatch(expected, got)
        if got not in self._assets and len(body) > self._free():
            raise AssetStoreFull
        self._assets[got] = bytes(body)
        return StoredAsset(got, len(body))

    async def stat(self, sha256: Digest) -> StoredAsset | None:
        body = self._assets.get(sha256)
        return None if body is None else StoredAsset(sha256, len(body))

    async def read(self, sha256: Digest, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        body = self._assets[sha256][start:stop]
        for at in range(0, len(body), BLOCK_BYTES):
            yield body[at : at + BLOCK_BYTES]

    async def trash(self, sha256: Digest) -> bool:
        return _move(sha256, self._assets, self._trash)

    async def restore(self, sha256: Digest) -> bool:
        return _move(sha256, self._trash, self._assets)

    async def erase(self, sha256: Digest) -> bool:
        return self._trash.pop(sha256, None) is not None

    async def survey(self) -> Survey:
        return Survey(self._fingerprint, tuple(sorted(self._trash)))

    async def import_file(self, path: Path, sha256: Digest) -> StoredAsset:
        return await self.write(read_file_blocks(path), sha256, sys.maxsize)

    async def presign_url(self, sha256: Digest, ttl: timedelta) -> str | None:
        del sha256, ttl
        return None

    def upload_objects(self) -> SharedObjects | None:
        return None

    def _free(self) -> int:
        return self._capacity - sum(map(len, [*self._assets.values(), *self._trash.values()]))


def _move(sha256: Digest, source: dict[Digest, bytes], target: dict[Digest, bytes]) -> bool:
    body = source.pop(sha256, None)
    if body is not None:
        target[sha256] = body
    return body is not None
