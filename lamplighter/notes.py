"""Small facts remembered between runs: names and texts in one JSON file."""

import os
import threading
from contextlib import suppress
from itertools import islice
from pathlib import Path

import msgspec

KEPT = 10_000  # notes; the one written longest ago goes first


class Notes:
    """A damaged or missing file is an empty one; of two that write at once, the last wins.

    They only spare work, so where they cannot be written (a home that is read-only, a full disk) nothing is noted.
    """

    def __init__(self, file: Path, kept: int = KEPT) -> None:
        self._file = file
        self._kept = kept

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
        young = dict(islice(known.items(), max(0, len(known) - self._kept), None))
        part = self._file.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(msgspec.json.encode(young))
            part.replace(self._file)
