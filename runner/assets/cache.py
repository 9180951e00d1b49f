"""A job's inputs: from the host's cache, or from the edge once however many jobs want them."""

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
from schemas.asset import DIGEST_SCHEME, Digest, InvalidDigest, is_digest

_INFO_LIMIT = 10_000  # assets of which is remembered what they are


class AssetSource(Protocol):
    """Where assets come from. Both raise runner.supplies.SuppliesError."""

    async def get_info(self, owner: str, sha256: Digest) -> AssetInfo:
        """What it is."""
        ...

    async def download(self, owner: str, sha256: Digest, into: Path) -> None:
        """Bring it to `into`, going on with what is there already; verified when this returns."""
        ...


class InputCache:
    """LRU by digest in `folder`. Shared by all jobs of the runner, and by no other process.

    Bytes are the same whoever owns them: that this job's owner may see them was checked by the edge at submit.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        fetch: AssetSource,
        *,
        reserve_bytes: int = 0,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._dir = CacheDir(folder, max_bytes, reserve_bytes, now_ns)
        self._source = fetch
        self._locks: dict[Digest, Lock] = {}
        self._pins: Counter[Digest] = Counter()  # how many tasks are at a digest: it is not evicted meanwhile
        self._info: dict[tuple[str, Digest], AssetInfo] = {}
        self._downloads: dict[Digest, int] = {}  # downloads under way, and their sizes in bytes
        self._eviction_lock = Lock()

    async def stage(self, owner: str, sha256: Digest, to: Path) -> None:
        """Put the file at `to`, read-only; it counts as used as long as `to` exists.

        Raises what Fetch raises, and OSError (DiskShort where the disk has no room).
        """
        async with self._lock_digest(sha256):
            if not await to_thread.run_sync(self._dir.contains, sha256):
                await self._download(owner, sha256)
            await to_thread.run_sync(self._dir.link_to, sha256, to)

    async def prefetch(self, owner: str, sha256: Digest) -> None:
        """Have it here; it may be evicted again before anybody needs it. Raises as `stage` does."""
        async with self._lock_digest(sha256):
            if not await to_thread.run_sync(self._dir.contains, sha256):
                await self._download(owner, sha256)

    async def drop(self, digests: Iterable[Digest]) -> None:
        """Forget deleted assets; waits for whoever is fetching one. A running job keeps what it has.

        All that were ever deleted come here again and again: what is not here costs nothing.
        """
        here = await to_thread.run_sync(self._dir.digests)
        here |= self._locks.keys() | {known for _, known in self._info}
        for sha256 in here.intersection(digests):
            async with self._lock_digest(sha256):
                await to_thread.run_sync(self._dir.drop, sha256)
                self._info = {key: about for key, about in self._info.items() if key[1] != sha256}

    async def filename_suffix(self, owner: str, sha256: Digest) -> str:
        """Of the asset's name at this owner. Raises what Fetch raises."""
        return (await self._get_info(owner, sha256)).suffix

    async def _get_info(self, owner: str, sha256: Digest) -> AssetInfo:
        """Asked for once: a name is given with the first upload, and stays."""
        known = self._info.get((owner, sha256))
        if known is None:
            if len(self._info) >= _INFO_LIMIT:
                self._info.clear()
            known = self._info[owner, sha256] = await self._source.get_info(owner, sha256)
        return known

    async def _download(self, owner: str, sha256: Digest) -> None:
        self._downloads[sha256] = (await self._get_info(owner, sha256)).bytes
        try:
            async with self._eviction_lock:
                await to_thread.run_sync(self._dir.make_room, dict(self._downloads), set(self._pins))
            await self._source.download(owner, sha256, self._dir.part_path(sha256))
            await to_thread.run_sync(self._dir.add, sha256)
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


# MERGED runner/cache.py: The folder in which a host keeps inputs by digest: sealed files, the least recently used go
# first. Blocking. / <sha256>        whole and read-only        <sha256>.part   a download that may go on / Nothing is
# remembered beside the files, so a restart forgets nothing: last use is the access time, a file that a job / uses has
# a second link (in that job's in/), and the seal is the modification time. / The seal stands for "verified when it
# came, not written since": it is made from digest and size, and any write to the / file, or a size that a power cut
# left behind, breaks it. Hashing a file each time would cost seconds per gigabyte and / job; a broken seal is the
# suspicion on which it is hashed again.


BLOCK_BYTES = 1 << 20
PART_SUFFIX = ".part"
FILE_MODE = 0o444

# No second name possible: another file system, one without links, or too many of them.
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP})


class DiskShort(OSError):
    """The disk cannot take the file, even without everything that may be evicted."""

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
    """Keeps at most `max_bytes`, but for what running jobs use; `reserve` bytes of the disk stay free."""

    def __init__(self, folder: Path, max_bytes: int, reserve: int, now_ns: Callable[[], int]) -> None:
        self._folder = folder
        self._limit_bytes = max_bytes
        self._reserve_bytes = reserve
        self._now_ns = now_ns
        make_private_folder(folder)

    def part_path(self, sha256: Digest) -> Path:
        """Where a download of it goes, and goes on."""
        return self._path(sha256).with_suffix(PART_SUFFIX)

    def contains(self, sha256: Digest) -> bool:
        """Whether it is here, whole; marks it as used. A file that is suspect and wrong is removed."""
        path = self._path(sha256)
        with suppress(FileNotFoundError):
            found = path.stat()
            if found.st_mtime_ns == verification_mtime_ns(sha256, found.st_size) or hash_file(path) == sha256:
                self._mark_used(path, sha256)
                return True
            path.unlink()
        return False

    def add(self, sha256: Digest) -> None:
        """Take in the finished, verified `part`."""
        part = self.part_path(sha256)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.chmod(FILE_MODE)
        self._mark_used(part, sha256)
        part.replace(self._path(sha256))

    def link_to(self, sha256: Digest, to: Path) -> None:
        """Give it the second name `to`, or a read-only copy where links are not possible."""
        path = self._path(sha256)
        try:
            to.hardlink_to(path)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            shutil.copyfile(path, to)
            to.chmod(FILE_MODE)

    def digests(self) -> set[Digest]:
        """Of everything here, the halves of downloads too."""
        return {path.name.removesuffix(PART_SUFFIX) for path in self._folder.iterdir()}

    def drop(self, sha256: Digest) -> None:
        """Forget it; a job that has it lent keeps its own name."""
        self._path(sha256).unlink(missing_ok=True)
        self.part_path(sha256).unlink(missing_ok=True)

    def make_room(self, coming: Mapping[Digest, int], pinned: Set[Digest]) -> None:
        """Evict until the downloads in `coming` (digest to size) fit. Raises DiskShort.

        Never evicts what is `pinned` or lent. Only the disk itself is a reason to refuse: with a full house of lent
        files the cap is exceeded until they come back.
        """
        entries = list(self._entries())
        arrived = sum(entry.bytes for entry in entries if entry.sha256 in coming)
        over = sum(entry.bytes for entry in entries) - arrived + sum(coming.values()) - self._limit_bytes
        disk = os.statvfs(self._folder)
        short = sum(coming.values()) - arrived + self._reserve_bytes - disk.f_bavail * disk.f_frsize
        evictable = [entry for entry in entries if not entry.is_linked and entry.sha256 not in pinned]
        for entry in sorted(evictable, key=lambda entry: entry.last_used_ns):
            if max(over, short) <= 0:
                break
            entry.path.unlink(missing_ok=True)  # it may be dropped by another thread this moment
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
    """The modification time, in ns, of a file that is what its name says."""
    return (int(sha256[:8], 16) + size) % (1 << 31) * 10**9


def hash_file(path: Path) -> Digest:
    """The sha256 of the file's bytes."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
