"""The digest of a local file, remembered by path, size and time of change so that a second submit reads nothing."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from lamplighter.notes import Notes

PIECE = 1024 * 1024


def _nothing(_: int) -> None:
    """Nobody watches the progress."""


def hash_file(path: Path, advance: Callable[[int], None] = _nothing) -> str:
    """sha256 of the file in hex; `advance` is told the bytes of each piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            advance(len(piece))
    return digest.hexdigest()


class DigestCache:
    """`{"path:size:mtime_ns": digest}` in one JSON file."""

    def __init__(self, file: Path) -> None:
        self._notes = Notes(file)

    def digest(self, path: Path, advance: Callable[[int], None] = _nothing) -> str:
        """The file's sha256 in hex, read only when path, size or time of change are new."""
        stat = path.stat()
        key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        known = self._notes.get(key)
        if known is None:
            known = hash_file(path, advance)
            self._notes.put(key, known)
        return known
