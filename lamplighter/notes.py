"""Small facts remembered between runs: names and texts in one JSON file."""

import os
from pathlib import Path

import msgspec


class Notes:
    """A damaged or missing file is an empty one; of two programs that write at once, the last wins."""

    def __init__(self, file: Path) -> None:
        self._file = file

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
        except (OSError, msgspec.DecodeError):
            return {}

    def _write(self, known: dict[str, str]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        part = self._file.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(msgspec.json.encode(known))
        part.replace(self._file)
