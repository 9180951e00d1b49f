"""Checkpoint of a job: what the next runner process needs in order to continue it.

It is one small file in the job's folder, replaced atomically. Messages are written to it before they are published. The
next runner process publishes the unpublished ones again at the same positions, and the broker drops those that it has.
So nothing is lost between the write and the publish, and nothing is published twice.

The file also contains the last lines of stderr, for the error of a failed job: few, short, and safe to print.
"""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import msgspec
from msgspec import Struct, field
from msgspec.structs import replace
from structlog.typing import FilteringBoundLogger

from bus.secret_files import atomic_write
from runner.engines.port import OutputChunk, OutputCursor
from runner.execution.verdict import StopReason
from runner.run_clock import StartTime, Uptime
from schemas.container_protocol import ErrorLine
from schemas.feed import FeedMessage
from schemas.job import JobMetric

TAIL_LINES = 5
LINE_LIMIT_CHARS = 300  # a longer line keeps its end, where the message is
MARKS = (b'{"type": "ready"', b'{"type": "end"', b'{"type":"ready"', b'{"type":"end"')  # of a reused container
SCAN_LIMIT_BYTES = 16 * 1024  # of a chunk, so that a flood of output takes little CPU time


class StderrTail(Struct, frozen=True):
    """The last `lines` of stderr, oldest first, of the output up to byte `end`."""

    lines: tuple[str, ...] = ()
    end: int = 0

    def updated(self, chunk: OutputChunk) -> "StderrTail":
        """Return the tail after `chunk`; the same if an earlier runner process has read the chunk."""
        if chunk.cursor.offset <= self.end:
            return self
        if chunk.stream != "stderr":
            return StderrTail(self.lines, chunk.cursor.offset)
        lines = chunk.data[-SCAN_LIMIT_BYTES:].split(b"\n")
        last = [line for line in lines if line.strip() and not line.startswith(MARKS)][-TAIL_LINES:]
        return StderrTail((*self.lines, *map(_escape_unprintable, last))[-TAIL_LINES:], chunk.cursor.offset)


def _escape_unprintable(line: bytes) -> str:
    """Return the line without characters that a terminal obeys.

    These are control characters, and those that change the direction of a text.
    """
    text = line[-4 * LINE_LIMIT_CHARS :].decode(errors="replace").rstrip("\r").expandtabs(4)
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return shown if len(shown) <= LINE_LIMIT_CHARS else f"…{shown[1 - LINE_LIMIT_CHARS :]}"


T = TypeVar("T")

CHECKPOINT_FILE = "journal.json"


class Checkpoint(Struct, frozen=True, kw_only=True):
    """The content of the checkpoint file.

    `started_at` and `started_up` are when the container began its job, on two clocks. `cursor` is where to
    resume the output; all lines before it are processed. Of the lines after it, those up to `log_offset` and
    `progress_offset` were published. `log_bytes` counts the published log.

    `end_code` is the exit code of a job that ended in a container that runs on.

    `unpublished` are messages that may not have reached the broker. `error_line` is the last error line, `tail` the
    last lines of stderr. `stop_reason` is why the runner stops the container. `disk_excess` says why the job used too
    much disk, if that is the reason.
    """

    started_at: datetime | None = None
    started_up: Uptime | None = None
    stop_reason: StopReason | None = field(default=None, name="intent")
    cursor: OutputCursor | None = field(default=None, name="mark")
    log_offset: int = 0
    progress_offset: int = 0
    log_bytes: int = 0
    unpublished: tuple[FeedMessage, ...] = field(default=(), name="pending")
    error_line: ErrorLine | None = field(default=None, name="said")
    metrics: tuple[JobMetric, ...] = ()
    disk_excess: str | None = field(default=None, name="disk")
    tail: StderrTail = StderrTail()
    end_code: int | None = field(default=None, name="end")

    @property
    def start_time(self) -> StartTime | None:
        """Return when the container began its job."""
        return None if self.started_at is None else StartTime(self.started_at, self.started_up)


_decode = msgspec.json.Decoder(Checkpoint).decode


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read the checkpoint in `folder`; a blank one if it is missing or damaged: the output is then read again."""
    try:
        return _decode((folder / CHECKPOINT_FILE).read_bytes())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, msgspec.DecodeError):
        return Checkpoint()


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint atomically, in a folder that may be new.

    Not synced: it is of use only while the host, and so the container, stays up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / CHECKPOINT_FILE, msgspec.json.encode(checkpoint), sync=False)


class CheckpointFile:
    """The checkpoint of a job of this runner process: its current content, and the one way to change it.

    A file that cannot be written is logged, and the job goes on. If this process ends before the disk has room again,
    the next one reads some output twice.
    """

    def __init__(self, folder: Path, log: FilteringBoundLogger) -> None:
        self._folder = folder
        self._log = log
        self._lock = anyio.Lock()
        self.current = Checkpoint()

    async def load(self) -> None:
        """Load what an earlier runner process wrote. A new attempt has nothing to load."""
        self.current = await anyio.to_thread.run_sync(read_checkpoint, self._folder)

    async def update(self, **changes: Any) -> None:
        """Change fields of the checkpoint; return after the file was written, or could not be."""
        try:
            await self.update_then(_do_nothing, **changes)
        except OSError as error:
            self._log.warning("checkpoint_write_failed", error=str(error))

    async def update_then(self, then: Callable[[], T], **changes: Any) -> T:
        """Change fields, then call `then` in the same thread: an action that must not precede the write.

        Return its result.

        Raises OSError if the file cannot be written; `then` was not called.
        """
        async with self._lock:
            self.current = replace(self.current, **changes)
            return await anyio.to_thread.run_sync(_write_then, self._folder, self.current, then)


def _write_then(folder: Path, checkpoint: Checkpoint, then: Callable[[], T]) -> T:
    write_checkpoint(folder, checkpoint)
    return then()


def _do_nothing() -> None:
    """Do nothing: the write needs no action after it."""
