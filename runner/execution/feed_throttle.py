"""A job's messages, thinned to what followers can take: pure, time is a parameter.

Every 250 ms the latest progress and what was printed since, and log pieces at once when they reach 16 KiB. Offsets rise
strictly in each kind. Between the kinds they never fall: a progress that full pieces had to pass is said at their
offset.
"""

from datetime import datetime
from typing import NamedTuple

from schemas.container_protocol import LogLine, OutputStream, ParsedLine, ProgressLine
from schemas.feed import (
    JOB_LOG_LIMIT_BYTES,
    LOG_INTERVAL_S,
    LOG_MESSAGE_LIMIT_BYTES,
    PROGRESS_LIMIT_PER_S,
    FeedMessage,
    FeedPosition,
    LogMessage,
    ProgressMessage,
)

FLUSH_INTERVAL_S = max(LOG_INTERVAL_S, 1 / PROGRESS_LIMIT_PER_S)


class PublishedOffsets(NamedTuple):
    """How far the notes go: the offsets of the last log and progress note, and the bytes of log in all."""

    log_offset: int = 0
    progress_offset: int = 0
    log_bytes: int = 0


class _LogChunk(NamedTuple):
    stream: OutputStream
    text: str
    size: int
    end: int


class _PendingProgress(NamedTuple):
    progress: ProgressLine
    end: int


class FeedThrottle:
    """Takes parsed messages in, gives notes out. `said` continues an earlier life: what it said is not taken again.

    `clock` values are seconds on one monotonic clock.
    """

    def __init__(self, round_: int, attempt: int, said: PublishedOffsets) -> None:
        self._round, self._attempt = round_, attempt
        self.published = said
        self._open: dict[OutputStream, _LogChunk] = {}
        self._closed: list[_LogChunk] = []
        self._bytes = said.log_bytes
        self._progress: _PendingProgress | None = None
        self._flushed_at = float("-inf")

    @property
    def is_empty(self) -> bool:
        """Whether everything taken in has been given out."""
        return not (self._open or self._closed or self._progress)

    @property
    def has_full_chunk(self) -> bool:
        """Whether a log piece has grown as large as it may: flush before more is taken in."""
        return bool(self._closed)

    @property
    def is_quota_used(self) -> bool:
        """Whether the job's share of the feed is used up: no more of its log is said."""
        return self._bytes >= JOB_LOG_LIMIT_BYTES

    def add(self, parsed: ParsedLine) -> None:
        """Take a message in; one that was said before, or is past the job's share of the feed, is dropped."""
        message, end = parsed
        if isinstance(message, ProgressLine) and end > self.published.progress_offset:
            self._progress = _PendingProgress(message, end)
        elif isinstance(message, LogLine) and end > self.published.log_offset:
            self._append(message, end)

    def flush(self, clock: float, at: datetime, *, everything: bool = False) -> tuple[FeedMessage, ...]:
        """The notes whose time has come, in the order of their offsets; `everything` at the end of the output."""
        timely = everything or clock - self._flushed_at >= FLUSH_INTERVAL_S
        if timely:
            self._close()
        passed, notes = self.published.log_offset, self._log_messages(at)
        if timely and self._progress:
            notes.append(self._progress_message(self._progress, passed, at))
            self._progress = None
        if timely and notes:
            self._flushed_at = clock
        return tuple(sorted(notes, key=lambda note: note.position.offset))

    def _log_messages(self, at: datetime) -> list[FeedMessage]:
        pieces, self._closed = self._closed, []
        for piece in pieces:
            self.published = self.published._replace(
                log_offset=piece.end, log_bytes=self.published.log_bytes + piece.size
            )
        return [LogMessage(self._position(piece.end), at, piece.stream, piece.text) for piece in pieces]

    def _append(self, log: LogLine, end: int) -> None:
        if self.is_quota_used:
            return
        line = f"{log.text}\n".encode()[: min(LOG_MESSAGE_LIMIT_BYTES, JOB_LOG_LIMIT_BYTES - self._bytes)]
        kept = self._open.get(log.stream, _LogChunk(log.stream, "", 0, 0))
        if kept.size + len(line) > LOG_MESSAGE_LIMIT_BYTES:
            self._close()
            kept = _LogChunk(log.stream, "", 0, 0)
        text = kept.text + line.decode(errors="ignore")
        self._open[log.stream] = _LogChunk(log.stream, text, kept.size + len(line), end)
        self._bytes += len(line)

    def _close(self) -> None:
        """Both streams at once: a piece left open would end before the other's and be said after it."""
        self._closed += sorted(self._open.values(), key=lambda piece: piece.end)
        self._open = {}

    def _progress_message(self, held: _PendingProgress, passed: int, at: datetime) -> FeedMessage:
        offset = max(held.end, passed)
        self.published = self.published._replace(progress_offset=offset)
        said = held.progress
        return ProgressMessage(self._position(offset), at, said.fraction, said.stage, said.done, said.total)

    def _position(self, offset: int) -> FeedPosition:
        return FeedPosition(self._round, self._attempt, offset)
