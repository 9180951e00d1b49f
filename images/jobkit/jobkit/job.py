"""One job as its author sees it: input, files, options, and what it says while it works."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jobkit.errors import BadJob
from jobkit.messages import MessageWriter, ProgressThrottle

PART_PREFIX = ".part-"
OUTPUT_FILE = "output.json"


class Job:
    """What is to be done. Folders are those of the container contract: in/ (read-only), out/, tmp/ (scratch)."""

    def __init__(self, folder: Path, lines: MessageWriter) -> None:
        said = _read_job_file(folder / "job.json")
        self.id = str(said["id"])
        self.endpoint = str(said["endpoint"])
        self.round = int(said.get("round", 1))
        self.attempt = int(said.get("attempt", 1))
        self.input: dict[str, Any] = said["input"]
        self.options: dict[str, Any] = said.get("options") or {}
        self.tmp = folder / "tmp"
        self._in = folder / "in"
        self._out = folder / "out"
        self._messages = lines
        self._progress = ProgressThrottle(lines.write)

    def path(self, name: str) -> Path:
        """The file given for the asset input `name`. KeyError if the job has none: ask `name in job.input`."""
        return self._in / str(self.input[name])

    @contextlib.contextmanager
    def output(self, name: str) -> Iterator[Path]:
        """A path to write the output `name` to. It becomes an output, whole and on disk, when the block succeeds.

        The path keeps the extension: many writers choose the format by it.
        """
        if name != Path(name).name or name in {"", ".", "..", OUTPUT_FILE} or name.startswith(PART_PREFIX):
            raise ValueError(f"{name!r} is no name for an output: give a plain file name")
        part = self._out / (PART_PREFIX + name)
        try:
            yield part
            move_into_place(part, self._out / name)
        finally:
            with contextlib.suppress(FileNotFoundError):
                part.unlink()

    def progress(
        self, fraction: float, stage: str | None = None, done: int | None = None, total: int | None = None
    ) -> None:
        """Say how far it is: `fraction` in [0, 1], `done` of `total` steps of `stage`. Cheap: call it every step.

        It is also the sign of life: none for `stall_s` seconds and the runner ends the job.
        """
        if not math.isfinite(fraction):
            raise ValueError(f"progress is a number from 0 to 1, not {fraction}")
        self._progress.put(fraction=float(fraction), stage=stage, done=_as_int(done), total=_as_int(total))

    def metric(self, name: str, value: float, unit: str = "") -> None:
        """A number measured of this job: frames a second, seconds of load."""
        self._messages.write("metric", name=name, value=float(value), unit=unit)

    def log(self, text: str) -> None:
        """A line for the job's log; `print` does the same."""
        print(text, file=sys.stderr, flush=True)

    def finish(self, data: Mapping[str, Any] | None) -> None:
        """Write the job's data and say the last progress. jobkit.run calls it."""
        part = self._out / (PART_PREFIX + OUTPUT_FILE)
        part.write_text(json.dumps(dict(data or {}), ensure_ascii=False, allow_nan=False), encoding="utf-8")
        move_into_place(part, self._out / OUTPUT_FILE)
        self._progress.flush()


def move_into_place(part: Path, final: Path) -> None:
    """Put a finished file in its place so that a crash shows either nothing or all of it."""
    _fsync(part)
    part.replace(final)
    _fsync(final.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _as_int(number: float | None) -> int | None:
    """Authors pass numpy's integers, which json does not know."""
    return None if number is None else int(number)


def _read_job_file(path: Path) -> dict[str, Any]:
    try:
        said: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadJob("bad_job", f"{path.name} cannot be read: {error}") from error
    if not isinstance(said, dict) or not {"id", "endpoint"} <= said.keys() or not isinstance(said.get("input"), dict):
        raise BadJob("bad_job", f"{path.name} is no job: it needs id, endpoint and input")
    return said
