"""Small facts remembered between runs: names and texts in one JSON file."""

import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path

import msgspec

ENTRY_LIMIT = 10_000  # notes; the one written longest ago goes first


class JsonCache:
    """A damaged or missing file is an empty one; of two that write at once, the last wins.

    They only spare work, so where they cannot be written (a home that is read-only, a full disk) nothing is noted.
    """

    def __init__(self, file: Path, kept: int = ENTRY_LIMIT) -> None:
        self._file = file
        self._limit = kept

    def get(self, name: str) -> str | None:
        """What was noted under `name`."""
        return self._read().get(name)

    def put(self, name: str, text: str) -> None:
        """Note it."""
        self._write(self._read() | {name: text})

    def drop(self, name: str) -> None:
        """Forget it, if it was noted."""
        known = self._read()
        if known.pop(name, None) is not None:
            self._write(known)

    def _read(self) -> dict[str, str]:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=dict[str, str])
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return {}

    def _write(self, known: dict[str, str]) -> None:
        young = dict(islice(known.items(), max(0, len(known) - self._limit), None))
        part = self._file.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(msgspec.json.encode(young))
            part.replace(self._file)


# MERGED lamplighter/digests.py: The digest of a local file, remembered by path, size and time of change so that a
# second submit reads nothing.


HASH_CHUNK_BYTES = 1024 * 1024


def _ignore_progress(_: int) -> None:
    """Nobody watches the progress."""


def hash_file(path: Path, advance: Callable[[int], None] = _ignore_progress) -> str:
    """sha256 of the file in hex; `advance` is told the bytes of each piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(HASH_CHUNK_BYTES):
            digest.update(piece)
            advance(len(piece))
    return digest.hexdigest()


class DigestCache:
    """`{"path:size:mtime_ns": digest}` in one JSON file."""

    def __init__(self, file: Path) -> None:
        self._cache = JsonCache(file)

    def digest(self, path: Path, advance: Callable[[int], None] = _ignore_progress) -> str:
        """The file's sha256 in hex, read only when path, size or time of change are new."""
        stat = path.stat()
        key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        known = self._cache.get(key)
        if known is None:
            known = hash_file(path, advance)
            self._cache.put(key, known)
        return known
