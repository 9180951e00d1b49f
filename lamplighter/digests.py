"""The digest of a local file, remembered by path, size and time of change so that a second submit reads nothing."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

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
    """`{"path:size:mtime_ns": digest}` in one JSON file. A damaged or missing file is an empty cache."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def _read(self) -> dict[str, str]:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=dict[str, str])
        except (OSError, msgspec.DecodeError):
            return {}

    def digest(self, path: Path, advance: Callable[[int], None] = _nothing) -> str:
        """The file's sha256 in hex, read only when path, size or time of change are new."""
        stat = path.stat()
        key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        known = self._read()
        if key not in known:
            known[key] = hash_file(path, advance)
            self._write(known)
        return known[key]

    def _write(self, known: dict[str, str]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        part = self._file.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(msgspec.json.encode(known))
        part.replace(self._file)
