"""Names that clients give to files of the shared folder: where they lead, and that they stay inside it.

A name comes from outside, and the folder is written by others while it is read.
"""

import os
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from anyio import to_thread

from edge.store.port import BLOCK_BYTES
from schemas.problems import ProblemError

TEMP_FOLDER = "temp"
_VENDOR_MOUNT = "/code/data/"  # where the vendor's container has the folder
_NAME_LIMIT_BYTES = 4096  # PATH_MAX; following a name of a million folders would take minutes
_OPEN_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_OPEN_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe would make the opening wait for its writer


class SharedFile:
    """A regular file below the folder, open for reading; `chunks` closes it."""

    def __init__(self, handle: int, name: str) -> None:
        self._handle = handle
        self.name = name

    async def read_chunks(self) -> AsyncIterator[bytes]:
        """Its bytes as they are now: whoever changes it meanwhile changes what is kept, never under a wrong digest."""
        try:
            while block := await to_thread.run_sync(os.read, self._handle, BLOCK_BYTES):
                yield block
        finally:
            os.close(self._handle)


def open_shared_file(root: Path, name: str) -> SharedFile:
    """The file that `name` means. Blocking. Raises Refused `input_invalid` where it means none."""
    if len(name.encode(errors="replace")) <= _NAME_LIMIT_BYTES:
        for place in _candidate_paths(root, name):
            try:
                handle = _open_inside(os.path.realpath(root), os.path.realpath(place))
            except (OSError, ValueError):  # ValueError: NUL, or half a character
                continue
            return SharedFile(handle, place.name)
    raise ProblemError(
        "input_invalid",
        f"{name[:100]!r} is not a file of the shared folder: put it into {TEMP_FOLDER}/ there,"
        " or name an http(s) URL or sha256:",
    )


def _candidate_paths(root: Path, name: str) -> Iterator[Path]:
    """A bare or relative name is seen from temp/, as the vendor's server does; some clients mean the folder itself."""
    if name.startswith(_VENDOR_MOUNT):
        yield root / name.removeprefix(_VENDOR_MOUNT).lstrip("/")
    else:
        yield root / TEMP_FOLDER / name
        yield root / name


def _open_inside(root: str, real: str) -> int:
    """Open `real`, a path without links, one folder after the other below `root`.

    A link that is put in the way after the look is not followed. Raises OSError, ValueError.
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
