"""Cache of inputs by digest: an input comes from the cache, or once from the edge, however many jobs use it.

`InputCache` coordinates the jobs; `CacheDir` is the folder. In the folder, <sha256> is a complete, read-only file, and
<sha256>.part is a download that can be resumed. No other state is kept, so a restart loses nothing. The last use is the
access time. A file that a job uses has a second link, in that job's in/.

The modification time marks a verified file that was not written to since. It is derived from digest and size, so any
write, or a size left by a power cut, breaks it. To hash a file for each job would take seconds per gigabyte; only a
file whose mark is broken is hashed again.
"""

import errno
import hashlib
import os
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Set
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol

from anyio import Lock, to_thread
from msgspec import Struct

from bus.secret_files import make_private_folder
from runner.assets.port import AssetInfo
from runner.metrics import RunnerMetrics
from schemas.asset import DIGEST_SCHEME, Digest, InvalidDigest, is_digest

_INFO_LIMIT = 10_000  # assets whose properties are kept in memory


class AssetSource(Protocol):
    """Source of assets. Both calls raise AssetError."""

    async def get_info(self, owner: str, sha256: Digest) -> AssetInfo:
        """Return the properties of the asset."""
        ...

    async def download(self, owner: str, sha256: Digest, into: Path) -> None:
        """Download the asset to `into`, resuming at the bytes there; it is verified when this returns."""
        ...


class InputCache:
    """LRU cache by digest in `folder`. All jobs of the runner share it; no other process uses it.

    The bytes are the same for every owner. The edge has checked at submit that the owner of the job may see them.
    """

    def __init__(  # noqa: PLR0913 - its folder, its source, and what tests replace
        self,
        folder: Path,
        max_bytes: int,
        fetch: AssetSource,
        *,
        reserve_bytes: int = 0,
        metrics: RunnerMetrics | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._dir = CacheDir(folder, max_bytes, reserve_bytes, now_ns)
        self._source = fetch
        self._metrics = metrics or RunnerMetrics()
        self._locks: dict[Digest, Lock] = {}
        self._pins: Counter[Digest] = Counter()  # tasks that use a digest, which is not evicted while there is one
        self._info: dict[tuple[str, Digest], AssetInfo] = {}
        self._downloads: dict[Digest, int] = {}  # downloads in progress, and their sizes in bytes
        self._eviction_lock = Lock()

    async def stage(self, owner: str, sha256: Digest, to: Path) -> None:
        """Put the file at `to`, read-only; it counts as used as long as `to` exists.

        Raises AssetError, and OSError (DiskShort if the disk is full).
        """
        async with self._lock_digest(sha256):
            if await to_thread.run_sync(self._dir.contains, sha256):
                self._metrics.cache_hits.inc()
            else:
                await self._download(owner, sha256)
            await to_thread.run_sync(self._dir.link_to, sha256, to)

    async def prefetch(self, owner: str, sha256: Digest) -> None:
        """Fetch the file into the cache; it may be evicted before a job needs it. Raises as `stage` does."""
        async with self._lock_digest(sha256):
            if not await to_thread.run_sync(self._dir.contains, sha256):
                await self._download(owner, sha256)

    async def drop(self, digests: Iterable[Digest]) -> None:
        """Remove deleted assets; waits for downloads of them in progress. A running job keeps its inputs.

        Called with all assets that were ever deleted; one that is not here costs nothing.
        """
        cached = await to_thread.run_sync(self._dir.digests)
        cached |= self._locks.keys() | {digest for _, digest in self._info}
        for sha256 in cached.intersection(digests):
            async with self._lock_digest(sha256):
                await to_thread.run_sync(self._dir.drop, sha256)
                self._info = {key: info for key, info in self._info.items() if key[1] != sha256}

    async def filename_suffix(self, owner: str, sha256: Digest) -> str:
        """Return the ending of the asset's name at this owner. Raises AssetError."""
        return (await self._get_info(owner, sha256)).suffix

    async def _get_info(self, owner: str, sha256: Digest) -> AssetInfo:
        """Return the properties. Requested once: a name is set by the first upload and stays."""
        info = self._info.get((owner, sha256))
        if info is None:
            if len(self._info) >= _INFO_LIMIT:
                self._info.clear()
            info = self._info[owner, sha256] = await self._source.get_info(owner, sha256)
        return info

    async def _download(self, owner: str, sha256: Digest) -> None:
        self._downloads[sha256] = (await self._get_info(owner, sha256)).bytes
        try:
            async with self._eviction_lock:
                await to_thread.run_sync(self._dir.make_room, dict(self._downloads), set(self._pins))
            await self._source.download(owner, sha256, self._dir.part_path(sha256))
            await to_thread.run_sync(self._dir.add, sha256)
            self._metrics.cache_misses.inc()
        finally:
            del self._downloads[sha256]

    @asynccontextmanager
    async def _lock_digest(self, sha256: Digest) -> AsyncIterator[None]:
        self._pins[sha256] += 1
        try:
            async with self._locks.setdefault(sha256, Lock()):
                yield
        finally:
            self._pins[sha256] -= 1
            if not self._pins[sha256]:
                del self._pins[sha256], self._locks[sha256]


BLOCK_BYTES = 1 << 20
PART_SUFFIX = ".part"
FILE_MODE = 0o444

# A second name is not possible: another file system, one without links, or too many links.
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP})


class DiskShort(OSError):
    """The disk has no room for the file, even after evicting everything that may be evicted."""

    def __init__(self, missing: int) -> None:
        super().__init__(
            errno.ENOSPC, f"the host's disk is {missing} bytes short for this input: free some space there"
        )


class _CacheEntry(Struct, frozen=True):
    path: Path
    sha256: Digest
    bytes: int
    last_used_ns: int
    is_linked: bool


class CacheDir:
    """The cache folder. Blocking.

    It holds at most `limit_bytes`, not counting files in use; `reserve_bytes` of the disk stay free.
    """

    def __init__(self, folder: Path, limit_bytes: int, reserve_bytes: int, now_ns: Callable[[], int]) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._reserve_bytes = reserve_bytes
        self._now_ns = now_ns
        make_private_folder(folder)

    def part_path(self, sha256: Digest) -> Path:
        """Return the path of the asset's download, from which it resumes."""
        return self._path(sha256).with_suffix(PART_SUFFIX)

    def contains(self, sha256: Digest) -> bool:
        """Return whether the file is here and complete, and mark it as used. A damaged file is removed."""
        path = self._path(sha256)
        with suppress(FileNotFoundError):
            found = path.stat()
            if found.st_mtime_ns == verification_mtime_ns(sha256, found.st_size) or hash_file(path) == sha256:
                self._mark_used(path, sha256)
                return True
            path.unlink()
        return False

    def add(self, sha256: Digest) -> None:
        """Move the finished, verified download into the cache."""
        part = self.part_path(sha256)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.chmod(FILE_MODE)
        self._mark_used(part, sha256)
        part.replace(self._path(sha256))

    def link_to(self, sha256: Digest, to: Path) -> None:
        """Give the file the second name `to`; copy it, read-only, where links are not possible."""
        path = self._path(sha256)
        try:
            to.hardlink_to(path)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            shutil.copyfile(path, to)
            to.chmod(FILE_MODE)

    def digests(self) -> set[Digest]:
        """Return the digests of everything here, partial downloads too."""
        return {path.name.removesuffix(PART_SUFFIX) for path in self._folder.iterdir()}

    def drop(self, sha256: Digest) -> None:
        """Remove the file; a job that uses it keeps its own link."""
        self._path(sha256).unlink(missing_ok=True)
        self.part_path(sha256).unlink(missing_ok=True)

    def make_room(self, coming: Mapping[Digest, int], pinned: Set[Digest]) -> None:
        """Evict files until the downloads in `coming` (digest to size) fit. Raises DiskShort.

        Never evicts files that are `pinned` or in use. Only a full disk is a reason to refuse: if too many files are in
        use, the limit is exceeded until they are released.
        """
        entries = list(self._entries())
        arrived = sum(entry.bytes for entry in entries if entry.sha256 in coming)
        over = sum(entry.bytes for entry in entries) - arrived + sum(coming.values()) - self._limit_bytes
        disk = os.statvfs(self._folder)
        short = sum(coming.values()) - arrived + self._reserve_bytes - disk.f_bavail * disk.f_frsize
        kept = pinned | coming.keys()  # what has arrived of a download is counted already
        evictable = [entry for entry in entries if not entry.is_linked and entry.sha256 not in kept]
        for entry in sorted(evictable, key=lambda entry: entry.last_used_ns):
            if max(over, short) <= 0:
                break
            entry.path.unlink(missing_ok=True)  # another thread may drop it at this moment
            over -= entry.bytes
            short -= entry.bytes
        if short > 0:
            raise DiskShort(short)

    def _entries(self) -> Iterator[_CacheEntry]:
        for path in self._folder.iterdir():
            sha256 = path.name.removesuffix(PART_SUFFIX)
            with suppress(FileNotFoundError):
                found = path.stat()
                if is_digest(sha256):
                    yield _CacheEntry(path, sha256, found.st_size, found.st_atime_ns, found.st_nlink > 1)

    def _mark_used(self, path: Path, sha256: Digest) -> None:
        os.utime(path, ns=(self._now_ns(), verification_mtime_ns(sha256, path.stat().st_size)))

    def _path(self, sha256: Digest) -> Path:
        if not is_digest(sha256):
            raise InvalidDigest(DIGEST_SCHEME + sha256)
        return self._folder / sha256


def verification_mtime_ns(sha256: Digest, size: int) -> int:
    """Return the modification time, in ns, that marks a verified file."""
    return (int(sha256[:8], 16) + size) % (1 << 31) * 10**9


def hash_file(path: Path) -> Digest:
    """Return the sha256 of the file's bytes."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
