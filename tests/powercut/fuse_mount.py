"""The unsynced disk as a mounted file system: `python -m tests.powercut.fuse_mount FOLDER MOUNTPOINT NAMES`.

It starts with the files of FOLDER, all of them synced. A line on standard input cuts the power: FOLDER then holds what
a disk would have kept, `cut` with the number of syncs is printed, and every call through the mount point fails with
EIO. Unmounted without a cut, as in a shutdown, it leaves everything in FOLDER.
"""

import errno
import os
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mfusepy

from tests.powercut.unsynced_disk import NameSync, UnsyncedDisk

_SYNCED = os.O_SYNC | os.O_DSYNC
_BLOCK = 4096
# An open file that is removed goes at once, as on a disk, instead of getting a hidden name.
_OPTIONS = {"hard_remove": True}
_FREE = 1 << 22  # blocks; the free space that programs see


class DiskMount(mfusepy.Operations):  # type: ignore[misc] # the package says nothing of its types' base
    """FUSE's calls on an UnsyncedDisk. A handle is (node, whether each write is synced), numbered."""

    use_ns = True

    def __init__(self, disk: UnsyncedDisk, lock: threading.Lock) -> None:
        self._disk = disk
        self._lock = lock
        self._handles: dict[int, tuple[int, bool]] = {}
        self._last = 0

    def _handle(self, number: int, flags: int) -> int:
        self._last += 1
        self._handles[self._last] = (number, bool(flags & _SYNCED))
        return self._last

    def _number(self, path: str, handle: int | None) -> int:
        return self._disk.find(path) if handle is None else self._handles[handle][0]

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        with self._lock:
            node = self._disk.node(self._number(path, fh))
            at = node.changed_ns
            times = {"st_atime": at, "st_mtime": at, "st_ctime": at}
            owner = {"st_uid": os.getuid(), "st_gid": os.getgid()}
            return {"st_mode": node.mode, "st_nlink": 1, "st_size": len(node.data), **times, **owner}

    def readdir(self, path: str, fh: int) -> list[str]:
        with self._lock:
            return [".", "..", *self._disk.node(self._disk.find(path)).children]

    def create(self, path: str, mode: int, flags: int = 0) -> int:
        with self._lock:
            return self._handle(self._disk.make(path, stat.S_IFREG | stat.S_IMODE(mode)), flags)

    def open(self, path: str, flags: int) -> int:
        with self._lock:
            number = self._disk.find(path)
            if flags & os.O_TRUNC:
                self._disk.truncate(number, 0)
            return self._handle(number, flags)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        with self._lock:
            return bytes(self._disk.node(self._handles[fh][0]).data[offset : offset + size])

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        number, synced = self._handles[fh]
        with self._lock:
            self._disk.write(number, data, offset)
            if synced:
                self._disk.sync_file(number)
        return len(data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        with self._lock:
            self._disk.truncate(self._number(path, fh), length)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        with self._lock:
            self._disk.sync_file(self._number(path, fh))
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        with self._lock:
            self._disk.sync_folder(self._disk.find(path))
        return 0

    def release(self, path: str, fh: int) -> int:
        del self._handles[fh]
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        with self._lock:
            self._disk.make(path, stat.S_IFDIR | stat.S_IMODE(mode))
        return 0

    def link(self, target: str, source: str) -> int:
        with self._lock:
            self._disk.link(target, self._disk.find(source))
        return 0

    def unlink(self, path: str) -> int:
        with self._lock:
            self._disk.remove(path)
        return 0

    rmdir = unlink

    def rename(self, old: str, new: str) -> int:
        with self._lock:
            self._disk.rename(old, new)
        return 0

    def chmod(self, path: str, mode: int) -> int:
        with self._lock:
            node = self._disk.node(self._disk.find(path))
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        with self._lock:
            self._disk.node(self._disk.find(path)).changed_ns = times[1] if times else time.time_ns()
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        sizes = {"f_bsize": _BLOCK, "f_frsize": _BLOCK, "f_blocks": 2 * _FREE, "f_bfree": _FREE, "f_bavail": _FREE}
        return {**sizes, "f_files": 1 << 20, "f_ffree": 1 << 19, "f_favail": 1 << 19, "f_namemax": 255}


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.is_file():
            yield path


def fill(disk: UnsyncedDisk, folder: Path) -> None:
    """Copy the files of `folder` to the disk, all of them synced."""
    for path in _walk(folder):
        made = disk.make("/" + str(path.relative_to(folder)), path.stat().st_mode)
        if path.is_file():
            disk.write(made, path.read_bytes(), 0)
    disk.sync_all()


def empty_out(left: dict[str, bytes | None], folder: Path) -> None:
    """Make `folder` hold what is left, and nothing else."""
    for path in reversed(list(_walk(folder))):
        path.rmdir() if path.is_dir() else path.unlink()
    for name, data in left.items():
        place = folder / name.lstrip("/")
        place.mkdir(mode=0o700) if data is None else place.write_bytes(data)


def main(folder: Path, mountpoint: Path, names: NameSync) -> None:
    """Serve until it is unmounted."""
    disk, lock = UnsyncedDisk(names, time.time_ns), threading.Lock()
    fill(disk, folder)

    cut = threading.Event()

    def wait_for_cut() -> None:
        if sys.stdin.readline():
            with lock:
                empty_out(disk.cut(), folder)
            cut.set()
            sys.stdout.write(f"cut {disk.syncs}\n")
            sys.stdout.flush()

    threading.Thread(target=wait_for_cut, daemon=True).start()
    mfusepy.FUSE(DiskMount(disk, lock), str(mountpoint), foreground=True, nothreads=True, fsname="powercut", **_OPTIONS)
    if not cut.is_set():
        disk.sync_all()
        empty_out(disk.cut(), folder)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), NameSync(sys.argv[3]))
    except RuntimeError as error:
        sys.exit(f"cannot mount ({os.strerror(int(str(error))) if str(error).isdigit() else error}, {errno.ENODEV})")
