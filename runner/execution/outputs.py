"""What a job left in out/, taken with care: the container is not trusted, so nothing there is followed or guessed.

Blocking; call it in a thread, after the container has exited.
"""

import os
import stat
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from runner.execution.disk_usage import REMEDY, to_mib
from schemas.asset import safe_name
from schemas.container_protocol import OUTPUT_FILE, PARTIAL_FILE_PREFIX
from schemas.events import DECODE_ERRORS
from schemas.job import NESTING_LIMIT, OUTPUT_DATA_LIMIT_BYTES, is_too_deep

OUTPUT_FILE_LIMIT = 1000  # more could not be recorded


class OutputRefused(Exception):
    """The outputs cannot be taken; `code` is output_invalid, output_too_large or disk_exceeded."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class CollectedOutput(Struct, frozen=True):
    """What is there: the object the image answered, if it did, and the paths of the files beside it, by name."""

    data: dict[str, Any]
    files: tuple[Path, ...]


_decode = msgspec.json.Decoder(dict[str, Any]).decode


def has_output(out: Path) -> bool:
    """Whether anything finished lies in `out`; what else than a folder stands there is for `collect` to refuse."""
    try:
        return any(map(_is_finished, os.listdir(out)))  # noqa: PTH208 - names are wanted
    except OSError:
        return os.path.lexists(out)


def collect_outputs(out: Path, most_bytes: int | None = None) -> CollectedOutput:
    """Everything in `out`; raises OutputRefused.

    Sizes are compared with `most_bytes` before anything is read, holes included: the store would keep them as zeros.
    """
    try:
        folder = os.open(out, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise OutputRefused("output_invalid", f"out/ is no folder any more: {error.strerror}") from error
    try:
        names = sorted(filter(_is_finished, os.listdir(folder)))  # noqa: PTH208 - by descriptor
        if len(names) > OUTPUT_FILE_LIMIT:
            raise OutputRefused("output_too_large", f"{len(names)} files in out/, {OUTPUT_FILE_LIMIT} are the most")
        size = sum(_check_file(folder, name) for name in names)
        if most_bytes is not None and size > most_bytes:
            told = (
                f"the outputs are {to_mib(size)} MiB, holes included, and the job may use {to_mib(most_bytes)} of disk"
            )
            raise OutputRefused("disk_exceeded", f"{told}: {REMEDY}")
        files = tuple(out / name for name in names if name != OUTPUT_FILE)
        return CollectedOutput(_read_output_file(folder) if OUTPUT_FILE in names else {}, files)
    finally:
        os.close(folder)


def _is_finished(name: str) -> bool:
    return not name.startswith(PARTIAL_FILE_PREFIX)


def _check_file(folder: int, name: str) -> int:
    """The file's apparent size in bytes, where it is one that can be taken."""
    found = os.lstat(name, dir_fd=folder)
    if not stat.S_ISREG(found.st_mode):
        raise OutputRefused("output_invalid", f"out/{name!r} is no regular file: write plain files into out/")
    if safe_name(name) != name:
        raise OutputRefused("output_invalid", f"out/{name!r} has no safe name: use letters, digits, dots and dashes")
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
        raise OutputRefused("output_invalid", f"output.json is no JSON object: {error}") from error
    if is_too_deep(answer):
        raise OutputRefused(
            "output_invalid", f"output.json is nested deeper than {NESTING_LIMIT} levels: put it into a file"
        )
    return answer
