"""The store in a folder of a local disk, or of a network folder that keeps locks, renames and fsync."""

import errno
import hashlib
import itertools
import os
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

from anyio import CancelScope, to_thread

from edge.store.pipeline import file_blocks, pour
from edge.store.port import BLOCK, AssetStore, DigestMismatch, StoreBroken, Stored, Survey, checked
from edge.store.spool import Spool, disk_errors, sync_folder
from edge.store.tenancy import Tenancy
from schemas.asset import Digest

# No second name possible: another file system, one without links, or too many of them.
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP})


class DirectoryStore(AssetStore):
    """Assets as files `sha256/ab/cdef…` below the tenancy's root. Made by `open_directory`."""

    def __init__(self, tenancy: Tenancy) -> None:
        self._tenancy = tenancy
        self._serial = itertools.count()

    async def write(self, chunks: AsyncIterator[bytes], expected: Digest | None, limit: int) -> Stored:
        hasher = hashlib.sha256()
        async with self._spool(expected) as (spool, held):
            sinks = [hasher.update] if held else [hasher.update, spool.write]
            size = await pour(chunks, limit, sinks)
            got = hasher.hexdigest()
            if expected not in (None, got):
                raise DigestMismatch(expected, got)
            place = self._place(got)
            await to_thread.run_sync(spool.commit, place)
        return Stored(got, size, place)

    @asynccontextmanager
    async def _spool(self, expected: Digest | None) -> AsyncIterator[tuple[Spool, bool]]:
        """A spool, and whether it holds the expected bytes already; gone at the end, however it ends."""
        place = None if expected is None else self._place(expected)
        spool = Spool(self._tenancy.temp / str(next(self._serial)))
        try:
            held = place is not None and await to_thread.run_sync(spool.hold, place)
            if not held:
                await to_thread.run_sync(spool.open)
            yield spool, held
        finally:
            with CancelScope(shield=True):
                await to_thread.run_sync(spool.close)

    async def stat(self, sha256: Digest) -> Stored | None:
        place = self._place(sha256)

        def look() -> Stored | None:
            with disk_errors(), suppress(FileNotFoundError):
                return Stored(sha256, place.stat().st_size, place)
            return None

        return await to_thread.run_sync(look)

    async def read(self, sha256: Digest, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        # Opened once: a file that goes to the trash meanwhile is read to its end.
        handle, size = await to_thread.run_sync(_open, self._place(sha256))
        end = size if stop is None else min(stop, size)
        try:
            while start < end:
                block = await to_thread.run_sync(_read, handle, min(BLOCK, end - start), start)
                start += len(block)
                yield block
        finally:
            os.close(handle)

    async def trash(self, sha256: Digest) -> bool:
        return await to_thread.run_sync(_move, self._place(sha256), self._trashed(sha256))

    async def restore(self, sha256: Digest) -> bool:
        return await to_thread.run_sync(_move, self._trashed(sha256), self._place(sha256))

    async def erase(self, sha256: Digest) -> bool:
        return await to_thread.run_sync(_erase, self._trashed(sha256))

    async def survey(self) -> Survey:
        return await to_thread.run_sync(self._survey)

    async def adopt(self, path: Path, sha256: Digest) -> Stored:
        place = self._place(sha256)
        if await to_thread.run_sync(_linked, path, place):
            return Stored(sha256, (await to_thread.run_sync(place.stat)).st_size, place)
        return await self.write(file_blocks(path), sha256, sys.maxsize)

    async def link(self, sha256: Digest, ttl: timedelta) -> str | None:
        del sha256, ttl
        return None

    def _survey(self) -> Survey:
        root = self._tenancy.root
        with disk_errors():
            disk = os.statvfs(root)
            trashed = sorted(path.name for path in (root / "trash").iterdir())
        return Survey(self._tenancy.fingerprint, disk.f_bavail * disk.f_frsize, tuple(trashed))

    def _place(self, sha256: Digest) -> Path:
        checked(sha256)
        return self._tenancy.root / "sha256" / sha256[:2] / sha256[2:]

    def _trashed(self, sha256: Digest) -> Path:
        return self._tenancy.root / "trash" / checked(sha256)


def _random_id() -> str:
    return uuid.uuid4().hex


@asynccontextmanager
async def open_directory(root: Path, new_id: Callable[[], str] = _random_id) -> AsyncIterator[DirectoryStore]:
    """The store in `root` (made if missing) for as long as the block runs. Raises StoreError.

    Other processes may have the same folder open. What writers that died left half-written is swept first.
    """
    tenancy = Tenancy(root, new_id)
    await to_thread.run_sync(tenancy.begin)
    try:
        yield DirectoryStore(tenancy)
    finally:
        with CancelScope(shield=True):
            await to_thread.run_sync(tenancy.end)


def _open(place: Path) -> tuple[int, int]:
    with disk_errors():
        try:
            handle = os.open(place, os.O_RDONLY)
        except FileNotFoundError:
            raise KeyError(place.parent.name + place.name) from None
        return handle, os.fstat(handle).st_size


def _read(handle: int, size: int, at: int) -> bytes:
    with disk_errors():
        block = os.pread(handle, size, at)
    if not block:
        raise StoreBroken("an asset became shorter while it was read: check the store's disk")
    return block


def _linked(path: Path, place: Path) -> bool:
    """Give the file the name `place`; False where it lies on another file system, or links are not possible."""
    with disk_errors():
        try:
            place.hardlink_to(path)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            return False
        sync_folder(place.parent)
    return True


def _move(source: Path, target: Path) -> bool:
    with disk_errors(), suppress(FileNotFoundError):
        source.replace(target)
        # The new name first: a power cut between the two may leave both, never none.
        sync_folder(target.parent)
        sync_folder(source.parent)
        return True
    return False


def _erase(path: Path) -> bool:
    with disk_errors(), suppress(FileNotFoundError):
        path.unlink()
        return True
    return False
