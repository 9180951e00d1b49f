"""Files and folders that are for their owner alone; a file is whole or not there."""

import os
import stat
from pathlib import Path

PRIVATE_UMASK = 0o077  # of edge, runner and `up`: what they and their children make is for their own user
TRAVERSE_ONLY_MODE = (
    0o711  # of a folder through which another user reaches one of its own, without seeing what else is there
)


def write_private(path: Path, content: bytes | str) -> None:
    """Put `content` at `path` with mode 0600, by a rename: a reader sees the old file or the new one. Blocking."""
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)  # one left by a crash may have been made with another mode
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def make_private_folder(path: Path, mode: int = 0o700) -> None:
    """Make the folder, or close one that is there, so that only its owner enters it. Blocking.

    `mode` may be PASSAGE. One that is there is never opened further, and is left as it is where it belongs to another
    user or everybody writes there, as in /tmp: it is not ours to close.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in made:
        folder.chmod(TRAVERSE_ONLY_MODE)
    found = path.stat()
    if found.st_uid == os.geteuid() and not found.st_mode & stat.S_ISVTX:
        path.chmod(stat.S_IMODE(found.st_mode) & mode)
