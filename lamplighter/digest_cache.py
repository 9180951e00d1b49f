"""Caches in JSON files: digests of local files, so that a second submit does not read a file again."""

import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path

import msgspec

ENTRY_LIMIT = 10_000  # the oldest entry is dropped first
CHUNK_BYTES = 1024 * 1024  # of reads, uploads and downloads

ByteProgress = Callable[[int], None]


def ignore_progress(_: int) -> None:
    """Ignore the number of bytes done: the default progress callback."""


class JsonCache:
    """Texts by name in one JSON file. A damaged or missing file counts as empty; the last of two writers wins.

    The cache only saves work. Where it cannot be written (read-only home, full disk), an entry is not kept. What is not
    a regular file is left alone: as root, replacing /dev/null would break the machine.
    """

    def __init__(self, file: Path, limit: int = ENTRY_LIMIT) -> None:
        self._file = file
        self._limit = limit

    def get(self, name: str) -> str | None:
        """Return the text stored under `name`, or None."""
        return self._read().get(name)

    def put(self, name: str, text: str) -> None:
        """Store `text` under `name`, in place of an earlier entry."""
        self._write(self._read() | {name: text})

    def drop(self, name: str) -> None:
        """Remove the entry of `name`, if there is one."""
        known = self._read()
        if known.pop(name, None) is not None:
            self._write(known)

    def _read(self) -> dict[str, str]:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=dict[str, str])
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return {}

    def _write(self, known: dict[str, str]) -> None:
        newest = dict(islice(known.items(), max(0, len(known) - self._limit), None))
        part = self._file.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
        with suppress(OSError):
            if self._file.exists() and not self._file.is_file():
                return
            self._file.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(msgspec.json.encode(newest))
            part.replace(self._file)


def hash_file(path: Path, advance: ByteProgress = ignore_progress) -> str:
    """Return the sha256 of the file in hex; call `advance` with the size of each chunk."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


class DigestCache:
    """Digests of local files as `{"path:size:mtime_ns": digest}` in one JSON file."""

    def __init__(self, file: Path) -> None:
        self._cache = JsonCache(file)

    def digest(self, path: Path, advance: ByteProgress = ignore_progress) -> str:
        """Return the file's sha256 in hex. Read the file only if its path, size or modification time is new."""
        stat = path.stat()
        key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        known = self._cache.get(key)
        if known is None:
            known = hash_file(path, advance)
            self._cache.put(key, known)
        return known
