"""One job as its author sees it: input, files, outputs, progress."""

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
    """One job. Its folders are those of the container contract: in/ (read-only), out/, tmp/ (scratch)."""

    def __init__(self, folder: Path, messages: MessageWriter) -> None:
        fields = _read_job_file(folder / "job.json")
        self.id = str(fields["id"])
        self.endpoint = str(fields["endpoint"])
        self.round = int(fields.get("round", 1))
        self.attempt = int(fields.get("attempt", 1))
        self.input: dict[str, Any] = fields["input"]
        self.traceparent: str | None = fields.get("traceparent")  # for spans of your own (W3C Trace Context)
        self.tmp = folder / "tmp"
        self._in = folder / "in"
        self._out = folder / "out"
        self._messages = messages
        self._progress = ProgressThrottle(messages.write)

    def path(self, name: str) -> Path:
        """Return the file of the asset input `name`. Raises KeyError if it was not given: check `name in job.input`."""
        return self._in / str(self.input[name])

    def secret(self, name: str) -> str:
        """Return the value of a secret that `endpoint.toml` names. Raises KeyError if it does not name this one."""
        try:
            return (Path(os.environ["LAMPLIGHTER_SECRETS"]) / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise KeyError(name) from None

    @contextlib.contextmanager
    def output(self, name: str) -> Iterator[Path]:
        """Yield a path to write the output `name` to. If the block succeeds, the file becomes an output.

        It is then complete and synced. The path keeps the extension, because many writers choose the format by it.
        """
        if name != Path(name).name or name in {"", ".", "..", OUTPUT_FILE} or name.startswith(PART_PREFIX):
            raise ValueError(f"{name!r} cannot be the name of an output: use a plain file name")
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
        """Report progress: `fraction` in [0, 1], `done` of `total` steps of `stage`. Call it for every step.

        It is cheap. It also shows that the job is alive: without any for `stall_s` seconds, the runner ends the job.
        """
        if not math.isfinite(fraction):
            raise ValueError(f"progress must be a number from 0 to 1, not {fraction}")
        self._progress.put(fraction=float(fraction), stage=stage, done=_as_int(done), total=_as_int(total))

    def metric(self, name: str, value: float, unit: str = "") -> None:
        """Report a number that was measured in this job, such as frames per second."""
        self._messages.write("metric", name=name, value=float(value), unit=unit)

    def log(self, text: str) -> None:
        """Write a line to the job's log, as `print` does."""
        print(text, file=sys.stderr, flush=True)

    def finish(self, data: Mapping[str, Any] | None) -> None:
        """Write the job's data and the last progress. `jobkit.run` calls it."""
        part = self._out / (PART_PREFIX + OUTPUT_FILE)
        part.write_text(json.dumps(dict(data or {}), ensure_ascii=False, allow_nan=False), encoding="utf-8")
        move_into_place(part, self._out / OUTPUT_FILE)
        self._progress.flush()


def volume(name: str) -> Path:
    """Return the folder of the volume `name` of endpoint.toml. It is read-only and complete."""
    return _find_folder("VOLUME", name)


def cache(name: str) -> Path:
    """Return the folder of the cache `name` of endpoint.toml. It may be empty at any start."""
    return _find_folder("CACHE", name)


def _find_folder(kind: str, name: str) -> Path:
    folder = os.environ.get(f"LAMPLIGHTER_{kind}_{name.upper()}")
    if folder is None:
        raise LookupError(f"there is no {kind.lower()} {name}: add [[{kind.lower()}s]] of this name to endpoint.toml")
    return Path(folder)


def move_into_place(part: Path, final: Path) -> None:
    """Rename a finished file so that after a crash it is either complete or absent."""
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
    """Convert numpy's integers, which json does not support."""
    return None if number is None else int(number)


def _read_job_file(path: Path) -> dict[str, Any]:
    try:
        fields: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadJob("bad_job", f"{path.name} cannot be read: {error}") from error
    if not isinstance(fields, dict) or not {"id", "endpoint"} <= fields.keys():
        raise BadJob("bad_job", f"{path.name} is not a job: it needs id, endpoint and input")
    if not isinstance(fields.get("input"), dict):
        raise BadJob("bad_job", f"{path.name} is not a job: its input must be an object")
    return fields
