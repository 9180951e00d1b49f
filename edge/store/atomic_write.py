"""Durable file writes: a temporary file that is renamed into place, and fsync of folders. Blocking."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from bus.secret_files import fsync_folder
from edge.store.port import AssetStoreFull, StoreBroken

WRITEBACK_BYTES = 8 * 1024 * 1024  # written between two requests to start write-back

_DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def map_disk_errors() -> Iterator[None]:
    """Map OSError to AssetStoreFull or StoreBroken."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL_ERRNOS:
            raise AssetStoreFull from error
        raise StoreBroken(f"the asset store failed ({error}): check its disk or network folder") from error


class AtomicFile:
    """A file that appears at its final path whole, or not at all.

    `temp` must be on the same file system as the final path. The order of the steps makes the write crash-safe: fsync
    of the bytes, then the atomic rename, then fsync of the folder. After a crash at any point the final path holds
    nothing or the whole file.

    A task that is cancelled from outside anyio leaves its thread running. The lock makes `close` wait for that thread,
    and every call after `close` does nothing.
    """

    def __init__(self, temp: Path) -> None:
        self._temp = temp
        self._handle = -1
        self._written = 0
        self._written_back = 0
        self._closed = False
        self._lock = Lock()

    def open(self) -> None:
        """Create the temporary file. Raises AssetStoreFull, StoreBroken."""
        with self._lock, map_disk_errors():
            if not self._closed:
                self._handle = os.open(self._temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    def link_existing(self, place: Path) -> bool:
        """Make `temp` a hard link to `place`; return False if `place` does not exist or links are not supported.

        The link keeps the bytes while a body of the same digest is verified: the file at `place` may be trashed and
        erased in the meantime.
        """
        with self._lock, suppress(OSError):
            if not self._closed:
                self._temp.hardlink_to(place)
                return True
        return False

    def write(self, block: bytes) -> None:
        """Append `block`. Start write-back every WRITEBACK_BYTES, so that the fsync at the end is short."""
        with self._lock, map_disk_errors():
            rest = memoryview(block)
            while rest:
                rest = rest[os.write(self._handle, rest) :]
            self._written += len(block)
            if self._written - self._written_back >= WRITEBACK_BYTES:
                self._start_writeback()

    def _start_writeback(self) -> None:
        if hasattr(os, "posix_fadvise"):  # not on macOS
            # On dirty pages DONTNEED starts the write-back without waiting for it (Linux, mm/fadvise.c).
            os.posix_fadvise(
                self._handle, self._written_back, self._written - self._written_back, os.POSIX_FADV_DONTNEED
            )
        self._written_back = self._written

    def commit(self, place: Path) -> None:
        """Make the written file, or the file that `link_existing` linked, appear at `place`, durably."""
        with self._lock, map_disk_errors():
            if self._handle == -1:
                with suppress(FileExistsError):
                    place.hardlink_to(self._temp)
            else:
                os.fsync(self._handle)
                self._temp.replace(place)
            fsync_folder(place.parent)

    def close(self) -> None:
        """Close the file, and remove it unless `commit` moved it."""
        with self._lock, map_disk_errors():
            self._closed = True
            if self._handle != -1:
                os.close(self._handle)
                self._handle = -1
            self._temp.unlink(missing_ok=True)


def create_durable_folder(folder: Path) -> None:
    """Create `folder` (mode 0700) and its missing parents, and make all of their names durable."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in missing:
        fsync_folder(path.parent)
