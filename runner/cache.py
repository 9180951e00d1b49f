"""The folder in which a host keeps inputs by digest: sealed files, the least recently used go first. Blocking.

    <sha256>        whole and read-only        <sha256>.part   a download that may go on

Nothing is remembered beside the files, so a restart forgets nothing: last use is the access time, a file that a job
uses has a second link (in that job's in/), and the seal is the modification time.

The seal stands for "verified when it came, not written since": it is made from digest and size, and any write to the
file, or a size that a power cut left behind, breaks it. Hashing a file each time would cost seconds per gigabyte and
job; a broken seal is the suspicion on which it is hashed again.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from bus.private import private_folder
from schemas.asset import SCHEME, Digest, InvalidDigest, is_digest

BLOCK = 1 << 20
PART = ".part"
MODE = 0o444

# No second name possible: another file system, one without links, or too many of them.
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP})


class DiskShort(OSError):
    """The disk cannot take the file, even without everything that may be evicted."""

    def __init__(self, missing: int) -> None:
        super().__init__(
            errno.ENOSPC, f"the host's disk is {missing} bytes short for this input: free some space there"
        )


class _Entry(Struct, frozen=True):
    path: Path
    sha256: Digest
    bytes: int
    used_ns: int
    lent: bool


class Shelf:
    """Keeps at most `max_bytes`, but for what running jobs use; `reserve` bytes of the disk stay free."""

    def __init__(self, folder: Path, max_bytes: int, reserve: int, now_ns: Callable[[], int]) -> None:
        self._folder = folder
        self._max = max_bytes
        self._reserve = reserve
        self._now_ns = now_ns
        private_folder(folder)

    def part(self, sha256: Digest) -> Path:
        """Where a download of it goes, and goes on."""
        return self._path(sha256).with_suffix(PART)

    def holds(self, sha256: Digest) -> bool:
        """Whether it is here, whole; marks it as used. A file that is suspect and wrong is removed."""
        path = self._path(sha256)
        with suppress(FileNotFoundError):
            found = path.stat()
            if found.st_mtime_ns == seal(sha256, found.st_size) or digest_of(path) == sha256:
                self._stamp(path, sha256)
                return True
            path.unlink()
        return False

    def add(self, sha256: Digest) -> None:
        """Take in the finished, verified `part`."""
        part = self.part(sha256)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.chmod(MODE)
        self._stamp(part, sha256)
        part.replace(self._path(sha256))

    def lend(self, sha256: Digest, to: Path) -> None:
        """Give it the second name `to`, or a read-only copy where links are not possible."""
        path = self._path(sha256)
        try:
            to.hardlink_to(path)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            shutil.copyfile(path, to)
            to.chmod(MODE)

    def digests(self) -> set[Digest]:
        """Of everything here, the halves of downloads too."""
        return {path.name.removesuffix(PART) for path in self._folder.iterdir()}

    def drop(self, sha256: Digest) -> None:
        """Forget it; a job that has it lent keeps its own name."""
        self._path(sha256).unlink(missing_ok=True)
        self.part(sha256).unlink(missing_ok=True)

    def make_room(self, coming: Mapping[Digest, int], pinned: Set[Digest]) -> None:
        """Evict until the downloads in `coming` (digest to size) fit. Raises DiskShort.

        Never evicts what is `pinned` or lent. Only the disk itself is a reason to refuse: with a full house of lent
        files the cap is exceeded until they come back.
        """
        entries = list(self._entries())
        arrived = sum(entry.bytes for entry in entries if entry.sha256 in coming)
        over = sum(entry.bytes for entry in entries) - arrived + sum(coming.values()) - self._max
        disk = os.statvfs(self._folder)
        short = sum(coming.values()) - arrived + self._reserve - disk.f_bavail * disk.f_frsize
        evictable = [entry for entry in entries if not entry.lent and entry.sha256 not in pinned]
        for entry in sorted(evictable, key=lambda entry: entry.used_ns):
            if max(over, short) <= 0:
                break
            entry.path.unlink(missing_ok=True)  # it may be dropped by another thread this moment
            over -= entry.bytes
            short -= entry.bytes
        if short > 0:
            raise DiskShort(short)

    def _entries(self) -> Iterator[_Entry]:
        for path in self._folder.iterdir():
            sha256 = path.name.removesuffix(PART)
            with suppress(FileNotFoundError):
                found = path.stat()
                if is_digest(sha256):
                    yield _Entry(path, sha256, found.st_size, found.st_atime_ns, found.st_nlink > 1)

    def _stamp(self, path: Path, sha256: Digest) -> None:
        os.utime(path, ns=(self._now_ns(), seal(sha256, path.stat().st_size)))

    def _path(self, sha256: Digest) -> Path:
        if not is_digest(sha256):
            raise InvalidDigest(SCHEME + sha256)
        return self._folder / sha256


def seal(sha256: Digest, size: int) -> int:
    """The modification time, in ns, of a file that is what its name says."""
    return (int(sha256[:8], 16) + size) % (1 << 31) * 10**9


def digest_of(path: Path) -> Digest:
    """The sha256 of the file's bytes."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
