"""The last lines that a job wrote to stderr, for the error of one that failed: few, short, and safe to print."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import msgspec
from msgspec import Struct
from msgspec.structs import replace
from structlog.typing import FilteringBoundLogger

from runner.engines.port import OutputChunk, OutputCursor
from runner.execution.verdict import StopReason
from runner.run_clock import StartTime, Uptime
from schemas.container_protocol import ErrorLine
from schemas.feed import FeedMessage

TAIL_LINES = 5
LINE_LIMIT_CHARS = 300  # of one line; what is longer keeps its end, where a message is
SCAN_LIMIT_BYTES = 16 * 1024  # of a chunk: a flood must not cost the runner its time


class StderrTail(Struct, frozen=True):
    """`lines`, oldest first, of the output up to byte `end`."""

    lines: tuple[str, ...] = ()
    end: int = 0

    def updated(self, chunk: OutputChunk) -> "StderrTail":
        """The tail once `chunk` was read; the same where that was read before, by an earlier life."""
        if chunk.cursor.offset <= self.end:
            return self
        if chunk.stream != "stderr":
            return StderrTail(self.lines, chunk.cursor.offset)
        last = [line for line in chunk.data[-SCAN_LIMIT_BYTES:].split(b"\n") if line.strip()][-TAIL_LINES:]
        return StderrTail((*self.lines, *map(_escape_unprintable, last))[-TAIL_LINES:], chunk.cursor.offset)


def _escape_unprintable(line: bytes) -> str:
    """Without anything that a terminal would obey: control characters, and those that turn the direction of a text."""
    text = line[-4 * LINE_LIMIT_CHARS :].decode(errors="replace").rstrip("\r").expandtabs(4)
    shown = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    return shown if len(shown) <= LINE_LIMIT_CHARS else f"…{shown[1 - LINE_LIMIT_CHARS :]}"


# MERGED runner/journal.py: What one life of the runner leaves for the next about a job: one small file in the job's
# folder, replaced whole. / Notes are written down before they are published. The next life says exactly these again,
# under the same places, and / the broker drops what it has: so nothing is lost between the writing and the
# publishing, and nothing is said twice.


T = TypeVar("T")

CHECKPOINT_FILE = "journal.json"


class Checkpoint(Struct, frozen=True, kw_only=True):
    """`started_at` and `started_up`: when the container began its job, on two clocks.

    `mark`: where to take the output up again; lines before it are wholly dealt with.

    Of the lines behind it, those up to `log_offset` and `progress_offset` have been said. `log_bytes` counts what was
    published of the log. `pending` are the notes that may not have reached the broker. `said` is the last error line,
    `tail` the last lines of stderr. `disk` is why the job used too much disk, where that is the intent.
    """

    started_at: datetime | None = None
    started_up: Uptime | None = None
    intent: StopReason | None = None
    mark: OutputCursor | None = None
    log_offset: int = 0
    progress_offset: int = 0
    log_bytes: int = 0
    pending: tuple[FeedMessage, ...] = ()
    said: ErrorLine | None = None
    disk: str | None = None
    tail: StderrTail = StderrTail()

    @property
    def start_time(self) -> StartTime | None:
        """When the container began its job."""
        return None if self.started_at is None else StartTime(self.started_at, self.started_up)


_decode = msgspec.json.Decoder(Checkpoint).decode


def read_checkpoint(folder: Path) -> Checkpoint:
    """The journal in `folder`; a blank one where there is none or it cannot be read (the output is then re-read)."""
    try:
        return _decode((folder / CHECKPOINT_FILE).read_bytes())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, msgspec.DecodeError):
        return Checkpoint()


def write_checkpoint(folder: Path, journal: Checkpoint) -> None:
    """Replace the journal at once, in a folder that may be new.

    Not synced: it is of use only while the host, and so the container, stays up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f"{CHECKPOINT_FILE}.new"
    new.write_bytes(msgspec.json.encode(journal))
    new.replace(folder / CHECKPOINT_FILE)


class CheckpointFile:
    """The journal of a job that this life runs: what it says now, and the one way to change it.

    A file that cannot be written is told in `log`, and no reason to give a job up: should this life end before the disk
    has room, the next one reads some output again.
    """

    def __init__(self, folder: Path, log: FilteringBoundLogger) -> None:
        self._folder = folder
        self._log = log
        self._lock = anyio.Lock()
        self.current = Checkpoint()

    async def load(self) -> None:
        """Take up what an earlier life wrote. A new attempt has nothing to take up."""
        self.current = await anyio.to_thread.run_sync(read_checkpoint, self._folder)

    async def update(self, **changes: Any) -> None:
        """Change fields of the journal; returns when the file says so, or cannot."""
        try:
            await self.update_then(_do_nothing, **changes)
        except OSError as error:
            self._log.warning("journal not written", why=str(error))

    async def update_then(self, then: Callable[[], T], **changes: Any) -> T:
        """The same, then `then` in the same thread: what must not be done before it is written down. Its answer.

        Raises OSError when it cannot be written; `then` was not called.
        """
        async with self._lock:
            self.current = replace(self.current, **changes)
            return await anyio.to_thread.run_sync(_write_then, self._folder, self.current, then)


def _write_then(folder: Path, journal: Checkpoint, then: Callable[[], T]) -> T:
    write_checkpoint(folder, journal)
    return then()


def _do_nothing() -> None:
    """Nothing has to follow."""
