"""Rotation of the log files of `up`: the processes keep writing to one file, whose content moves to numbered copies."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

LOG_FILE_LIMIT_BYTES = 16 * 1000**2
LOG_COPIES_KEPT = 4  # beside the file that is written to
CHECK_INTERVAL_S = 10.0

_log = structlog.get_logger()


def rotate(file: Path, limit_bytes: int = LOG_FILE_LIMIT_BYTES, copies: int = LOG_COPIES_KEPT) -> bool:
    """Move the content of `file` to `<file>.1` if it has `limit_bytes`; older copies move up. Return whether it did.

    The file is copied and then truncated, because its writers keep it open: renamed, it would grow under the new name.
    They append (O_APPEND), so they continue at its start. A line that is written between the two steps is lost.
    Raises OSError; the file is then as it was.
    """
    if not file.exists() or file.stat().st_size < limit_bytes:
        return False
    new = _numbered(file, 0)
    try:
        with file.open("rb") as source, new.open("wb") as target:
            os.fchmod(target.fileno(), os.fstat(source.fileno()).st_mode & 0o777)
            shutil.copyfileobj(source, target)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    for number in range(copies, 0, -1):
        if (older := _numbered(file, number - 1)).exists():
            older.replace(_numbered(file, number))
    os.truncate(file, 0)
    return True


def _numbered(file: Path, number: int) -> Path:
    return file.with_name(f"{file.name}.{number}")


async def rotate_forever(files: Iterable[Path]) -> None:
    """Rotate the files when they reach their limit. On a full disk they stay as they are, until there is room."""
    files = tuple(files)
    while True:
        await anyio.to_thread.run_sync(_rotate_all, files)
        await anyio.sleep(CHECK_INTERVAL_S)


def _rotate_all(files: Iterable[Path]) -> None:
    for file in files:
        try:
            rotate(file)
        except OSError as error:
            _log.warning("log_rotation_failed", file=str(file), error=str(error))
