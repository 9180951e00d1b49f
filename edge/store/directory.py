"""The asset store that the settings name: in a folder, or in a bucket, which `edge.store.remote` opens.

The folder is on a local disk, or it is a network folder that supports locks, renames and fsync:

    sha256/ab/cdef…    the assets
    trash/abcdef…      deleted assets, until the edge has checked that no job names them
    uploads/           objects of unfinished uploads, which all edges share
    tmp/<writer>/      bodies that are being written; a living writer holds the flock on `lock` in this folder
    fingerprint        identifies the store; written once
    lock               serializes writers that start or stop
"""

import errno
import fcntl
import hashlib
import itertools
import os
import shutil
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

from anyio import CancelScope, to_thread
from msgspec import Struct

from bus.secret_files import atomic_write, fsync_folder
from edge.store.file_io import AtomicFile, create_durable_folder, fan_out, map_disk_errors, read_file_blocks
from edge.store.port import (
    BLOCK_BYTES,
    AssetStore,
    DigestMismatch,
    SharedObject,
    SharedObjects,
    StoreBroken,
    StoredAsset,
    StoreError,
    Survey,
    require_digest,
)
from schemas.asset import Digest
from schemas.version import import_extra

DIGEST_PREFIXES = tuple(f"{n:02x}" for n in range(256))


class WriterLock:
    """One process that writes to the folder `root`, from `acquire` to `release`. Blocking: call it in a thread."""

    def __init__(self, root: Path, new_id: Callable[[], str]) -> None:
        self.root = root
        self.fingerprint = ""
        self.temp = root / "tmp" / new_id()
        self._new_id = new_id
        self._lock = -1

    def acquire(self) -> None:
        """Create the layout, remove the folders of dead writers, and create this writer's folder. Raises StoreError.

        The folder's own lock is held meanwhile. Two edges that start at the same time then agree on one fingerprint,
        and no sweep sees a writer that has its folder but not yet its lock.
        """
        with map_disk_errors():
            _create_layout(self.root)
            with _exclusive_lock(self.root / "lock"):
                remove_dead_writers(self.root / "tmp")
                self.fingerprint = _read_or_create_fingerprint(self.root, self._new_id)
                self.temp.mkdir()
                self._lock = os.open(self.temp / "lock", os.O_RDWR | os.O_CREAT, 0o600)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self) -> None:
        """Remove this writer's folder. The store's lock is held, so that no sweep sees half a folder."""
        with map_disk_errors(), _exclusive_lock(self.root / "lock"):
            shutil.rmtree(self.temp)
            os.close(self._lock)


def remove_dead_writers(tmp: Path) -> None:
    """Remove the folders of dead writers; the kernel released their locks when they died."""
    for folder in tmp.iterdir():
        if not _is_writer_alive(folder):
            shutil.rmtree(folder)


def _is_writer_alive(folder: Path) -> bool:
    with suppress(FileNotFoundError):
        handle = os.open(folder / "lock", os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
    return False


def _create_layout(root: Path) -> None:
    create_durable_folder(root)
    for name in ("sha256", "trash", "tmp"):
        (root / name).mkdir(exist_ok=True)
    # Create all 256 now, so that no write has to make a folder durable.
    for prefix in DIGEST_PREFIXES:
        (root / "sha256" / prefix).mkdir(exist_ok=True)
    for folder in (root / "sha256", root):
        fsync_folder(folder)


def _read_or_create_fingerprint(root: Path, new_id: Callable[[], str]) -> str:
    path = root / "fingerprint"
    with suppress(FileNotFoundError):
        return path.read_text()
    atomic_write(path, new_id())
    return path.read_text()


@contextmanager
def _exclusive_lock(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


# A hard link is not possible: another file system, no support for links, or too many links to the file.
_LINK_UNSUPPORTED_ERRNOS = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP})


class DirectoryStore(AssetStore):
    """Assets as files `sha256/ab/cdef…` below the writer's root. Use `open_directory` to create it."""

    def __init__(self, writer: WriterLock) -> None:
        self._writer = writer
        self._serial = itertools.count()

    async def write(self, chunks: AsyncIterator[bytes], expected: Digest | None, limit: int) -> StoredAsset:
        hasher = hashlib.sha256()
        async with self._temporary_file(expected) as (file, is_stored):
            sinks = [hasher.update] if is_stored else [hasher.update, file.write]
            size = await fan_out(chunks, limit, sinks)
            got = hasher.hexdigest()
            if expected not in (None, got):
                raise DigestMismatch(expected, got)
            place = self._asset_path(got)
            await to_thread.run_sync(file.commit, place)
        return StoredAsset(got, size, place)

    @asynccontextmanager
    async def _temporary_file(self, expected: Digest | None) -> AsyncIterator[tuple[AtomicFile, bool]]:
        """Yield a temporary file, and whether it is a link to the stored bytes of `expected`. Remove it at the end."""
        place = None if expected is None else self._asset_path(expected)
        file = AtomicFile(self._writer.temp / str(next(self._serial)))
        try:
            is_stored = place is not None and await to_thread.run_sync(file.link_existing, place)
            if not is_stored:
                await to_thread.run_sync(file.open)
            yield file, is_stored
        finally:
            with CancelScope(shield=True):
                await to_thread.run_sync(file.close)

    async def stat(self, sha256: Digest) -> StoredAsset | None:
        place = self._asset_path(sha256)

        def read_size() -> StoredAsset | None:
            with map_disk_errors(), suppress(FileNotFoundError):
                return StoredAsset(sha256, place.stat().st_size, place)
            return None

        return await to_thread.run_sync(read_size)

    async def read(self, sha256: Digest, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        # Opened once: a file that is moved to the trash meanwhile can still be read to its end.
        handle, size = await to_thread.run_sync(_open_for_read, self._asset_path(sha256))
        end = size if stop is None else min(stop, size)
        try:
            while start < end:
                block = await to_thread.run_sync(_read_block, handle, min(BLOCK_BYTES, end - start), start)
                start += len(block)
                yield block
        finally:
            os.close(handle)

    async def trash(self, sha256: Digest) -> bool:
        return await to_thread.run_sync(_rename_durably, self._asset_path(sha256), self._trash_path(sha256))

    async def restore(self, sha256: Digest) -> bool:
        return await to_thread.run_sync(_rename_durably, self._trash_path(sha256), self._asset_path(sha256))

    async def erase(self, sha256: Digest) -> bool:
        return await to_thread.run_sync(_unlink, self._trash_path(sha256))

    async def survey(self) -> Survey:
        return await to_thread.run_sync(self._read_survey)

    async def import_file(self, path: Path, sha256: Digest) -> StoredAsset:
        place = self._asset_path(sha256)
        if await to_thread.run_sync(_hardlink, path, place):
            return StoredAsset(sha256, (await to_thread.run_sync(place.stat)).st_size, place)
        return await self.write(read_file_blocks(path), sha256, sys.maxsize)

    async def presign_url(self, sha256: Digest, ttl: timedelta) -> str | None:
        del sha256, ttl
        return None

    def upload_objects(self) -> SharedObjects:
        return FolderObjects(self._writer.root / "uploads", self._writer.temp)

    def _read_survey(self) -> Survey:
        root = self._writer.root
        with map_disk_errors():
            trashed = sorted(path.name for path in (root / "trash").iterdir())
        return Survey(self._writer.fingerprint, tuple(trashed))

    def _asset_path(self, sha256: Digest) -> Path:
        require_digest(sha256)
        return self._writer.root / "sha256" / sha256[:2] / sha256[2:]

    def _trash_path(self, sha256: Digest) -> Path:
        return self._writer.root / "trash" / require_digest(sha256)


class FolderObjects(SharedObjects):
    """Objects as files below `root`. `scratch`: the writer's own folder on the same file system."""

    def __init__(self, root: Path, scratch: Path) -> None:
        self._root, self._scratch = root, scratch
        with map_disk_errors():
            create_durable_folder(root)

    def create(self, name: str, body: bytes) -> bool:
        place, new = self._root / name, self._scratch / uuid.uuid4().hex
        with map_disk_errors():
            create_durable_folder(place.parent)
            try:
                with new.open("xb") as file:
                    file.write(body)
                    file.flush()
                    os.fsync(file.fileno())
                place.hardlink_to(new)
            except FileExistsError:
                return False
            finally:
                new.unlink(missing_ok=True)
            fsync_folder(place.parent)
        return True

    def read(self, name: str) -> bytes:
        with map_disk_errors():
            try:
                return (self._root / name).read_bytes()
            except FileNotFoundError:
                raise KeyError(name) from None

    def list(self, folder: str = "") -> Sequence[SharedObject]:
        with map_disk_errors():
            paths = [Path(place, name) for place, _, names in os.walk(self._root / folder) for name in names]
            found = [self._stat(path) for path in sorted(paths)]
        return [entry for entry in found if entry is not None]

    def _stat(self, path: Path) -> SharedObject | None:
        with suppress(FileNotFoundError):  # deleted meanwhile
            stat, name = path.stat(), str(path.relative_to(self._root))
            return SharedObject(name, stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC))
        return None

    def delete(self, names: Iterable[str]) -> None:
        with map_disk_errors():
            for name in names:
                place = self._root / name
                place.unlink(missing_ok=True)
                with suppress(OSError):  # the folder has other files, or another edge has removed it
                    place.parent.rmdir()


def _random_id() -> str:
    return uuid.uuid4().hex


@asynccontextmanager
async def open_directory(root: Path, new_id: Callable[[], str] = _random_id) -> AsyncIterator[DirectoryStore]:
    """Open the store in `root` while the block runs, and create the folder if needed. Raises StoreError.

    Other processes may have the same folder open. Unfinished files of dead writers are removed first.
    """
    writer = WriterLock(root, new_id)
    await to_thread.run_sync(writer.acquire)
    try:
        yield DirectoryStore(writer)
    finally:
        with CancelScope(shield=True):
            await to_thread.run_sync(writer.release)


def _open_for_read(place: Path) -> tuple[int, int]:
    with map_disk_errors():
        try:
            handle = os.open(place, os.O_RDONLY)
        except FileNotFoundError:
            raise KeyError(place.parent.name + place.name) from None
        return handle, os.fstat(handle).st_size


def _read_block(handle: int, size: int, at: int) -> bytes:
    with map_disk_errors():
        block = os.pread(handle, size, at)
    if not block:
        raise StoreBroken("an asset became shorter while it was read: check the store's disk")
    return block


def _hardlink(path: Path, place: Path) -> bool:
    """Link `path` to `place`; return False if the file system does not allow the link."""
    with map_disk_errors():
        try:
            place.hardlink_to(path)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in _LINK_UNSUPPORTED_ERRNOS:
                raise
            return False
        fsync_folder(place.parent)
    return True


def _rename_durably(source: Path, target: Path) -> bool:
    with map_disk_errors(), suppress(FileNotFoundError):
        source.replace(target)
        # The new name first: a power cut between the two may leave both, never none.
        fsync_folder(target.parent)
        fsync_folder(source.parent)
        return True
    return False


def _unlink(path: Path) -> bool:
    with map_disk_errors(), suppress(FileNotFoundError):
        path.unlink()
        return True
    return False


class StoreSettings(Struct, frozen=True):
    """The `[store]` section: where the asset store is."""

    url: str = ""
    """Where files are kept. Empty: a folder in `data`. `file:///mnt/shared`: a folder that several edges share.
    `s3://bucket/prefix`, `gs://…` or `az://account/container/…`: a bucket.
    """
    presign: bool = True
    """Clients and runners fetch from the bucket by URLs that expire. Off: the edge passes the bytes through."""
    replace: bool = False
    """Accept this store although the installation used another one before. Set it for one start only."""


class StorePackageMissing(StoreError):
    """The Python package for this store is not installed."""


@asynccontextmanager
async def open_store(settings: StoreSettings, data: Path) -> AsyncIterator[AssetStore]:
    """Open the store while the block runs. Raises StoreError."""
    url = urlsplit(settings.url)
    if url.scheme in {"", "file"}:
        folder = Path(unquote(url.path)) if url.path else data / "assets"
        async with open_directory(folder) as directory:
            yield directory
        return
    remote = import_extra(f"{__package__}.remote", "remote", f"[store] url = {url.scheme}://…", StorePackageMissing)
    async with remote.open_remote(settings.url, data / "scratch", presign=settings.presign) as bucket:
        yield bucket
