"""Collection of what a job left in out/. The container is not trusted, so nothing there is followed or guessed.

Blocking: call it in a thread, after the container has exited.
"""

import os
import stat
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from runner.execution.disk_usage import REMEDY, to_mib
from schemas.asset import safe_name
from schemas.container_protocol import OUTPUT_FILE, PARTIAL_FILE_PREFIX
from schemas.events import DECODE_ERRORS
from schemas.job import NESTING_LIMIT, OUTPUT_DATA_LIMIT_BYTES, is_too_deep

OUTPUT_FILE_LIMIT = 1000  # more do not fit into a record


class OutputRefused(Exception):
    """The outputs cannot be taken; `code` is output_invalid, output_too_large or disk_exceeded."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class CollectedOutput(Struct, frozen=True):
    """The outputs: the object in output.json, if there is one, and the paths of the other files by name."""

    data: dict[str, Any]
    files: tuple[Path, ...]


_decode = msgspec.json.Decoder(dict[str, Any]).decode


class OutputPresence(NamedTuple):
    """Whether `out` contains anything finished, and whether any of it is a file to upload."""

    has_output: bool
    has_files: bool


def find_output(out: Path) -> OutputPresence:
    """Return what `out` contains. Both are true for a non-folder too: `collect_outputs` refuses that."""
    try:
        names = set(filter(_is_finished, os.listdir(out)))  # noqa: PTH208 - returns names
    except OSError:
        exists = os.path.lexists(out)
        return OutputPresence(exists, exists)
    return OutputPresence(bool(names), bool(names - {OUTPUT_FILE}))


def collect_outputs(out: Path, limit_bytes: int | None = None) -> CollectedOutput:
    """Collect everything in `out`. Raises OutputRefused.

    Sizes are compared with `limit_bytes` before anything is read. Holes count too: the asset store would keep them as
    zeros.
    """
    try:
        folder = os.open(out, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise OutputRefused("output_invalid", f"out/ is not a folder any more: {error.strerror}") from error
    try:
        names = sorted(filter(_is_finished, os.listdir(folder)))  # noqa: PTH208 - by descriptor
        if len(names) > OUTPUT_FILE_LIMIT:
            raise OutputRefused("output_too_large", f"{len(names)} files in out/, the limit is {OUTPUT_FILE_LIMIT}")
        size = sum(_check_file(folder, name) for name in names)
        if limit_bytes is not None and size > limit_bytes:
            problem = (
                f"the outputs are {to_mib(size)} MiB, holes included, "
                f"and the job may use {to_mib(limit_bytes)} of disk: {REMEDY}"
            )
            raise OutputRefused("disk_exceeded", problem)
        files = tuple(out / name for name in names if name != OUTPUT_FILE)
        return CollectedOutput(_read_output_file(folder) if OUTPUT_FILE in names else {}, files)
    finally:
        os.close(folder)


def _is_finished(name: str) -> bool:
    return not name.startswith(PARTIAL_FILE_PREFIX)


def _check_file(folder: int, name: str) -> int:
    """Return the file's apparent size in bytes. Raises OutputRefused if the file cannot be taken."""
    found = os.lstat(name, dir_fd=folder)
    if not stat.S_ISREG(found.st_mode):
        raise OutputRefused("output_invalid", f"out/{name!r} is not a regular file: write plain files into out/")
    if safe_name(name) != name:
        raise OutputRefused("output_invalid", f"out/{name!r} is not a safe name: use letters, digits, dots and dashes")
    try:
        os.close(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder))
    except OSError as error:
        raise OutputRefused("output_invalid", f"out/{name!r} cannot be read: {error.strerror}") from error
    return found.st_size


def _read_output_file(folder: int) -> dict[str, Any]:
    file = os.open(OUTPUT_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    with os.fdopen(file, "rb") as opened:
        text = opened.read(OUTPUT_DATA_LIMIT_BYTES + 1)
    if len(text) > OUTPUT_DATA_LIMIT_BYTES:
        raise OutputRefused(
            "output_too_large", f"output.json is over {OUTPUT_DATA_LIMIT_BYTES} bytes: put it into a file"
        )
    try:
        answer = _decode(text)
    except DECODE_ERRORS as error:
        raise OutputRefused("output_invalid", f"output.json is not a JSON object: {error}") from error
    if is_too_deep(answer):
        raise OutputRefused(
            "output_invalid", f"output.json is nested deeper than {NESTING_LIMIT} levels: put it into a file"
        )
    return answer
