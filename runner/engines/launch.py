"""A container as this machine sees it under every engine: its folders, its start in a thread, its processes.

Engines prepare the folders, start and measure with it. The rest of the runner prepares and removes folders with it.

A job chooses the depth, the names and the modes of what it leaves in its folder. So nothing in `remove_tree` recurses,
follows a link, or builds a path from two names. Each directory that is found below the first level is moved up to it,
and is then emptied in the same way. At most three descriptors are open, however deep the tree is.
"""

import asyncio
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from bus.secret_files import TRAVERSE_ONLY_MODE
from runner.engines.port import ContainerUsage, FolderMount
from runner.engines.process_shim import find_descendants, private_bytes
from schemas.container_protocol import JOB_FILE

T = TypeVar("T")

JOB_SUBDIRS = ("in", "out", "tmp")
WRITABLE_SUBDIRS = ("out", "tmp")
SCRATCH_FOLDERS = ("/tmp", "/dev/shm")  # noqa: S108 - in the container, each a tmpfs of its own


def prepare_job_dir(job_dir: Path, owner: tuple[int, int], *, warm: bool, mounted: bool = False) -> None:
    """Make in/, out/ and tmp/, and let (uid, gid) `owner` write to the last two. Blocking.

    A warm container also makes its socket in the folder itself. The folder stays ours, with the sticky bit, and so does
    out/: no job can replace a part that we write to or read from later with a link. A job may leave symlinks in its
    folders, so open files there with O_NOFOLLOW.

    No other user of the machine can enter the folder, neither to read a job's files nor to run a setuid program of a
    job. `mounted`: the job gets the folder as a bind mount, so it need not pass through the folder above.
    """
    for part in JOB_SUBDIRS:
        (job_dir / part).mkdir(parents=True, exist_ok=True)
    job_dir.parent.chmod(0o700 if mounted else TRAVERSE_ONLY_MODE)
    (job_dir / "in").chmod(0o755)
    if (job_dir / JOB_FILE).exists():
        (job_dir / JOB_FILE).chmod(0o644)
    if os.geteuid() == owner[0]:
        job_dir.chmod(0o700)
        return
    os.chown(job_dir / "tmp", *owner)
    for path, mode in ((job_dir / "out", 0o770), (job_dir, 0o1770 if warm else 0o750)):
        os.chown(path, -1, owner[1])
        path.chmod(mode)


def prepare_inner_job_dir(job_dir: Path) -> None:
    """Prepare the folder of one job of a reused container, inside the folder that `prepare_job_dir` made. Blocking.

    `job_dir` and the folder around it are ours, and the sticky bit of the latter keeps it so. The group of the folder
    around it is the one that the job's user has; without rights for a group, that user is our own.
    """
    around = job_dir.parent.stat()
    for part in JOB_SUBDIRS:
        (job_dir / part).mkdir(exist_ok=True)
    (job_dir / "in").chmod(0o755)
    if not around.st_mode & stat.S_IRWXG:
        _copy_linked_files(job_dir / "in")
        job_dir.chmod(0o700)
        return
    for path, mode in ((job_dir / "tmp", 0o770), (job_dir / "out", 0o770), (job_dir, 0o750)):
        os.chown(path, -1, around.st_gid)
        path.chmod(mode)


def close_inner_job_dir(job_dir: Path) -> None:
    """Take the folder of a job that has ended from the container, which runs on. Blocking.

    A job that ran as our own user may have deleted it.
    """
    with suppress(FileNotFoundError):
        job_dir.chmod(0o700)


def _copy_linked_files(folder: Path) -> None:
    """Replace links to the cache by copies: a job that runs as our own user could change the files of the cache."""
    for path in folder.iterdir():
        if path.stat(follow_symlinks=False).st_nlink > 1:
            copy = path.with_name(f"{path.name}.copy")
            shutil.copyfile(path, copy)
            copy.chmod(0o444)
            copy.replace(path)


def prepare_mounts(mounts: Iterable[FolderMount], owner: tuple[int, int], *, mounted: bool = False) -> None:
    """Let (uid, gid) `owner` read the volumes and write to the caches. Blocking.

    `mounted`: the job gets the folders as bind mounts. Otherwise its group, and no other user of the machine, may pass
    through the folder above.
    """
    for mount in mounts:
        if not mounted and os.geteuid() != owner[0]:
            os.chown(mount.source.parent, -1, owner[1])
            mount.source.parent.chmod(0o710)
        if mount.is_writable:
            os.chown(mount.source, *owner)
            mount.source.chmod(0o700)
        if mount.is_private:
            prepare_private_folder(mount.source, owner)


def prepare_private_folder(folder: Path, owner: tuple[int, int]) -> None:
    """Let only (uid, gid) `owner` read the files in the folder, which stays ours. Blocking."""
    is_ours = os.geteuid() == owner[0]
    if not is_ours:
        os.chown(folder, -1, owner[1])
    folder.chmod(0o700 if is_ours else 0o750)
    for path in folder.iterdir():
        if not is_ours:
            os.chown(path, *owner)
        path.chmod(0o400)


async def start_cancellable(pool: ThreadPoolExecutor, start: Callable[[], T], undo: Callable[[T], None]) -> T:
    """Run `start` in a thread of `pool`; return its result, such as the handle of a container.

    A thread cannot be cancelled. If the caller is cancelled, `undo` removes what the thread started, because the result
    is lost.
    """

    def undo_started(done: "Future[T]") -> None:
        if not done.cancelled() and done.exception() is None:
            undo(done.result())

    future = pool.submit(start)
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        future.add_done_callback(undo_started)
        raise


def measure_processes(pid: int) -> ContainerUsage:
    """Return what the container of a process of this machine uses. Docker's own count takes 20 ms."""
    members = [pid, *find_descendants(pid)]
    files = size = 0
    for folder in SCRATCH_FOLDERS:
        with suppress(OSError):  # only root may look there
            found = os.statvfs(f"/proc/{pid}/root{folder}")
            files += found.f_files - found.f_ffree
            size += (found.f_blocks - found.f_bfree) * found.f_frsize
    return ContainerUsage(len(members), sum(map(private_bytes, members)), files, size)


OWNER_RIGHTS = 0o700  # what the owner of a directory needs in order to empty it


def remove_tree(folder: Path) -> None:
    """Remove `folder` and all that is in it.

    A link in its place is removed, not followed. A missing folder is not an error.

    Continues after an error, and raises the first OSError once nothing more can be removed.
    """
    try:
        top = open_dir(str(folder))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        folder.unlink(missing_ok=True)
        return
    try:
        _DirEmptier(top).run()
    finally:
        os.close(top)
    with suppress(FileNotFoundError):  # somebody else has removed it, or the folder around it
        folder.rmdir()


class _DirEmptier:
    """Empties one directory. `top` is its descriptor."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._device = os.fstat(top).st_dev
        self._changed = False
        self._error: OSError | None = None

    def run(self) -> None:
        """Repeat passes until one finds nothing. Raises OSError when a pass changes nothing."""
        while self._run_pass():
            if not self._changed:
                raise self._error or OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    def _run_pass(self) -> bool:
        """Return whether anything was found. A directory that is moved up may be found by this pass or by the next."""
        found, self._changed, self._error = False, False, None
        with os.scandir(self._top) as entries:
            for entry in entries:
                found = True
                try:
                    self._remove(entry, self._top)
                except OSError as error:
                    self._keep_error(error)
        return found

    def _remove(self, entry: "os.DirEntry[str]", parent: int) -> None:
        """Remove a file. Empty and remove a directory of the first level; move a deeper one up to the first level."""
        try:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.name, dir_fd=parent)
            elif parent == self._top:
                self._empty_dir(entry.name)
                os.rmdir(entry.name, dir_fd=parent)
            else:
                # To move a directory, its owner needs the right to write to it: its ".." changes.
                os.close(open_dir(entry.name, parent))
                os.rename(entry.name, f".{secrets.token_hex(16)}", src_dir_fd=parent, dst_dir_fd=self._top)
        except FileNotFoundError:
            return  # another process removes the same folder
        self._changed = True

    def _empty_dir(self, name: str) -> None:
        place = open_dir(name, self._top)
        try:
            if os.fstat(place).st_dev != self._device:
                raise OSError(errno.EXDEV, "another file system is mounted there: unmount it", name)
            with os.scandir(place) as entries:
                for entry in entries:
                    try:
                        self._remove(entry, place)
                    except OSError as error:
                        self._keep_error(error)
        finally:
            os.close(place)

    def _keep_error(self, error: OSError) -> None:
        """Keep the more informative error: a directory is not empty because something in it could not be removed."""
        if self._error is None or self._error.errno == errno.ENOTEMPTY:
            self._error = error


def open_dir(name: str, parent: int | None = None) -> int:
    """Open the directory `name` with the rights to empty it. Raises NotADirectoryError for anything else.

    It is opened with O_PATH first and then through /proc. A directory of mode 000 cannot be read until its mode is
    changed, and that needs a path or a descriptor.
    """
    found = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        mode = stat.S_IMODE(os.fstat(found).st_mode)
        if mode & OWNER_RIGHTS != OWNER_RIGHTS:
            Path(f"/proc/self/fd/{found}").chmod(mode | OWNER_RIGHTS)
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=found)
    finally:
        os.close(found)
