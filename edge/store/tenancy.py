"""Who writes in a store's folder: its layout, its fingerprint, and a lock by which living writers are told from dead.

sha256/ab/cdef…    the assets
trash/abcdef…      deleted, while it is checked that nothing names them
tmp/<writer>/      bodies on their way; `lock` in it is held as long as that writer lives
fingerprint lock
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edge.store.spool import disk_errors, durable_folder, sync_folder

PREFIXES = tuple(f"{n:02x}" for n in range(256))


class Tenancy:
    """One writer's right to be in the folder `root`, from `begin` to `end`. Blocking: for a thread."""

    def __init__(self, root: Path, new_id: Callable[[], str]) -> None:
        self.root = root
        self.fingerprint = ""
        self.temp = root / "tmp" / new_id()
        self._new_id = new_id
        self._lock = -1

    def begin(self) -> None:
        """Lay out the folder, sweep what dead writers left, and move in.

        Under the folder's own lock, so that two edges starting at once agree on one fingerprint and no sweep meets a
        writer that has its folder and not yet its lock. Raises StoreError.
        """
        with disk_errors():
            _lay_out(self.root)
            with _locked(self.root / "lock"):
                sweep(self.root / "tmp")
                self.fingerprint = _fingerprint(self.root, self._new_id)
                self.temp.mkdir()
                self._lock = os.open(self.temp / "lock", os.O_RDWR | os.O_CREAT, 0o600)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def end(self) -> None:
        """Move out. Under the same lock: a sweep must not meet half a folder."""
        with disk_errors(), _locked(self.root / "lock"):
            shutil.rmtree(self.temp)
            os.close(self._lock)


def sweep(tmp: Path) -> None:
    """Remove the folders of writers that have died; the kernel dropped their locks with them."""
    for folder in tmp.iterdir():
        if not _alive(folder):
            shutil.rmtree(folder)


def _alive(folder: Path) -> bool:
    with suppress(FileNotFoundError):
        handle = os.open(folder / "lock", os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
    return False


def _lay_out(root: Path) -> None:
    durable_folder(root)
    for name in ("sha256", "trash", "tmp"):
        (root / name).mkdir(exist_ok=True)
    # All 256 at once: a write then never has to make a folder durable.
    for prefix in PREFIXES:
        (root / "sha256" / prefix).mkdir(exist_ok=True)
    for folder in (root / "sha256", root):
        sync_folder(folder)


def _fingerprint(root: Path, new_id: Callable[[], str]) -> str:
    path = root / "fingerprint"
    with suppress(FileNotFoundError):
        return path.read_text()
    fresh = path.with_suffix(".new")
    with fresh.open("w") as file:
        file.write(new_id())
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_folder(root)
    return path.read_text()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
