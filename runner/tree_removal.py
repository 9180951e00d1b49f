"""Removal of a folder that a job could write to. Blocking.

A job chooses the depth, the names and the modes of what it leaves. So nothing here recurses, follows a link, or builds
a path from two names. Each directory that is found below the first level is moved up to it, and is then emptied in the
same way. At most three descriptors are open, however deep the tree is.
"""

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

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
