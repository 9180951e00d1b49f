"""The blocking half of a write: a temporary file that becomes the asset in one step, or leaves no trace."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from edge.store.port import AssetStoreFull, StoreBroken

WRITEBACK_BYTES = 8 * 1024 * 1024  # bytes

_DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def map_disk_errors() -> Iterator[None]:
    """The border to the operating system: OSError becomes StoreFull or StoreBroken."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL_ERRNOS:
            raise AssetStoreFull from error
        raise StoreBroken(f"the asset store failed ({error}): check its disk or network folder") from error


class AtomicFile:
    """A body on its way into the store. `temp` must lie on the same file system as the final place.

    Crash-safe by order: the bytes reach the disk (fsync), then the name appears (rename, atomic), then the name
    reaches the disk (fsync of the folder). Cut anywhere, the place holds nothing or the whole file.
    A task that is cancelled from outside anyio leaves its thread running, hence the lock: `close` waits for it, and
    nothing happens after `close`.
    """

    def __init__(self, temp: Path) -> None:
        self._temp = temp
        self._handle = -1
        self._written = 0
        self._written_back = 0
        self._closed = False
        self._lock = Lock()

    def open(self) -> None:
        """Create the temporary file."""
        with self._lock, map_disk_errors():
            if not self._closed:
                self._handle = os.open(self._temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    def link_existing(self, place: Path) -> bool:
        """Keep the bytes at `place` alive by a second name; False where there are none or links are not possible.

        While a body of the same digest is only being verified, the file may go to the trash and be erased.
        """
        with self._lock, suppress(OSError):
            if not self._closed:
                self._temp.hardlink_to(place)
                return True
        return False

    def write(self, block: bytes) -> None:
        """Append `block`; every 8 MiB the kernel is asked to start writing, so that the fsync at the end is short."""
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
        """Make the file, or what `hold` kept, appear at `place`, durably."""
        with self._lock, map_disk_errors():
            if self._handle == -1:
                with suppress(FileExistsError):
                    place.hardlink_to(self._temp)
            else:
                os.fsync(self._handle)
                self._temp.replace(place)
            fsync_folder(place.parent)

    def close(self) -> None:
        """Let go of the file; whatever `commit` has not moved is removed."""
        with self._lock, map_disk_errors():
            self._closed = True
            if self._handle != -1:
                os.close(self._handle)
                self._handle = -1
            self._temp.unlink(missing_ok=True)


def fsync_folder(folder: Path) -> None:
    """A rename is durable when its folder is (`man fsync`)."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def create_durable_folder(folder: Path) -> None:
    """Make it, for nobody else's eyes, and what is missing above it; all their names are durable then."""
    fresh = [made for made in (folder, *folder.parents) if not made.exists()]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for made in fresh:
        fsync_folder(made.parent)
