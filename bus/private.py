"""Files and folders that hold secrets: for their owner alone, a file whole or not there."""

import os
from pathlib import Path


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


def private_folder(path: Path) -> None:
    """Make the folder, or close one that is there, so that only its owner enters it. Blocking."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
