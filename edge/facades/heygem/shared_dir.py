"""Open the files of the shared folder that clients name, and nothing outside of that folder.

The names come from clients, and clients write to the folder while the edge reads it.
"""

import os
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from anyio import to_thread

from edge.store.port import BLOCK_BYTES
from schemas.problems import ProblemError

TEMP_FOLDER = "temp"
_VENDOR_MOUNT = "/code/data/"  # the mount point in the vendor's container
_NAME_LIMIT_BYTES = 4096  # PATH_MAX; resolving a name with a million folders takes minutes
_OPEN_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_OPEN_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # opening a pipe would wait for its writer


class SharedFile:
    """A regular file of the folder, open for reading. `read_chunks` closes it."""

    def __init__(self, handle: int, name: str) -> None:
        self._handle = handle
        self.name = name

    async def read_chunks(self) -> AsyncIterator[bytes]:
        """Yield the bytes. A change while reading changes the stored asset, whose digest is that of the bytes read."""
        try:
            while block := await to_thread.run_sync(os.read, self._handle, BLOCK_BYTES):
                yield block
        finally:
            self.close()

    def close(self) -> None:
        """Close the file without reading it."""
        os.close(self._handle)


def open_shared_file(root: Path, name: str) -> SharedFile:
    """Open the file that `name` means. Blocking. Raises ProblemError `input_invalid` for an unknown name."""
    if len(name.encode(errors="replace")) <= _NAME_LIMIT_BYTES:
        for path in _candidate_paths(root, name):
            try:
                handle = _open_inside(os.path.realpath(root), os.path.realpath(path))
            except (OSError, ValueError):  # ValueError: a NUL or a lone surrogate in the name
                continue
            return SharedFile(handle, path.name)
    raise ProblemError(
        "input_invalid",
        f"{name[:100]!r} is not a file of the shared folder: put it into {TEMP_FOLDER}/ there,"
        " or name an http(s) URL or sha256:",
    )


def _candidate_paths(root: Path, name: str) -> Iterator[Path]:
    """Yield the paths that `name` may mean. It is relative to temp/, as on the vendor's server, or to the folder."""
    if name.startswith(_VENDOR_MOUNT):
        yield root / name.removeprefix(_VENDOR_MOUNT).lstrip("/")
    else:
        yield root / TEMP_FOLDER / name
        yield root / name


def _open_inside(root: str, real: str) -> int:
    """Open `real`, a path without symbolic links, one folder at a time below `root`.

    A link that replaces a folder after the path was resolved is not followed. Raises OSError, ValueError.
    """
    inner = Path(real).relative_to(root).parts
    if not inner:
        raise IsADirectoryError(real)
    folder = os.open(root, _OPEN_FOLDER_FLAGS)
    try:
        for part in inner[:-1]:
            deeper = os.open(part, _OPEN_FOLDER_FLAGS, dir_fd=folder)
            os.close(folder)
            folder = deeper
        return _require_regular_file(os.open(inner[-1], _OPEN_FILE_FLAGS, dir_fd=folder))
    finally:
        os.close(folder)


def _require_regular_file(handle: int) -> int:
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    raise OSError("not a regular file")
