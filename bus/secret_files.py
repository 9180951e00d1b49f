"""Files that are whole or not there, and files and folders that only their owner can read. Everything here blocks."""

import os
import stat
from pathlib import Path

PRIVATE_UMASK = 0o077  # of edge, runner and `up`: what they and their children make is for their own user
# Mode of a folder through which another user reaches a file of its own, without seeing what else is there.
TRAVERSE_ONLY_MODE = 0o711


def atomic_write(path: Path, content: bytes | str, mode: int = 0o600, *, sync: bool = True) -> None:
    """Put `content` at `path` by a rename: a reader, or a restart after a power cut, finds the old file or the new one.

    The file has exactly `mode`, whatever the umask. One writer at a time for each path: the temporary file is
    `<name>.part` beside it, so that the next write replaces one that a crash left. Raises OSError; then the old file
    is still there. Without `sync` a power cut may lose or damage the file: for state that ends with the machine.
    """
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)  # one left by a crash may have been made with another mode
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, mode)
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            if sync:
                os.fsync(handle)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if sync:
        fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable: the new name reaches the disk with its folder (`man fsync`)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_private_folder(path: Path, mode: int = 0o700) -> None:
    """Create the folder so that only its owner can enter it, or restrict one that exists. Blocking.

    `mode` may be TRAVERSE_ONLY_MODE. An existing folder is never opened further. It is left as it is when it belongs to
    another user or is writable for everybody, like /tmp.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in made:
        folder.chmod(TRAVERSE_ONLY_MODE)
    found = path.stat()
    if found.st_uid == os.geteuid() and not found.st_mode & stat.S_ISVTX:
        path.chmod(stat.S_IMODE(found.st_mode) & mode)
