"""A download that grows in a file, from which the next try goes on."""

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from anyio import CancelScope, to_thread

from schemas.asset import Digest


class ResumableFile:
    """A file that grows, and the hash of what it holds. Blocking."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+b", buffering=0)
        self._file.seek(0)
        self._hash = hashlib.file_digest(self._file, "sha256")
        self.size = self._file.tell()

    @property
    def sha256(self) -> Digest:
        """Return the digest of the bytes received so far."""
        return self._hash.hexdigest()

    def restart(self) -> None:
        """Discard the bytes: the server sends the whole file again."""
        self._file.truncate(0)
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, block: bytes) -> None:
        """Append a block to the file and to the hash."""
        rest = memoryview(block)
        while rest:
            rest = rest[os.write(self._file.fileno(), rest) :]
        self._hash.update(block)
        self.size += len(block)

    def close(self) -> None:
        """Close the file; its bytes stay for a later resume."""
        self._file.close()


@asynccontextmanager
async def open_resumable(path: Path) -> AsyncIterator[ResumableFile]:
    download = await to_thread.run_sync(ResumableFile, path)
    try:
        yield download
    finally:
        with CancelScope(shield=True):
            await to_thread.run_sync(download.close)
