"""Throttle of a job's messages, so that followers can keep up. Pure; time is a parameter.

Every 250 ms it emits the latest progress and the log since then, and a log chunk at once when it reaches 16 KiB.
Offsets of log messages rise strictly, and so do those of progress messages. Between the two kinds they never decrease:
a progress message that full chunks have overtaken gets their offset.
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
    """Position of what was published: offsets of the last log and progress message, and the total bytes of log."""

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
    """Takes parsed lines in and emits messages. `published` continues where an earlier runner process stopped.

    `clock` values are seconds on one monotonic clock.
    """

    def __init__(self, round_: int, attempt: int, published: PublishedOffsets) -> None:
        self._round, self._attempt = round_, attempt
        self.published = published
        self._open: dict[OutputStream, _LogChunk] = {}
        self._closed: list[_LogChunk] = []
        self._bytes = published.log_bytes
        self._progress: _PendingProgress | None = None
        self._flushed_at = float("-inf")

    @property
    def is_empty(self) -> bool:
        """Return whether everything taken in was emitted."""
        return not (self._open or self._closed or self._progress)

    @property
    def has_full_chunk(self) -> bool:
        """Return whether a log chunk has its full size: flush before more is taken in."""
        return bool(self._closed)

    @property
    def is_quota_used(self) -> bool:
        """Return whether the job's log quota of the feed is used up: no more log is published."""
        return self._bytes >= JOB_LOG_LIMIT_BYTES

    def add(self, parsed: ParsedLine) -> None:
        """Take a line in. A line that was published before, or that exceeds the quota, is dropped."""
        message, end = parsed
        if isinstance(message, ProgressLine) and end > self.published.progress_offset:
            self._progress = _PendingProgress(message, end)
        elif isinstance(message, LogLine) and end > self.published.log_offset:
            self._append(message, end)

    def is_due(self, clock: float) -> bool:
        """Return whether there are messages that need not wait any longer."""
        return not self.is_empty and clock - self._flushed_at >= FLUSH_INTERVAL_S

    def flush(self, clock: float, at: datetime, *, everything: bool = False) -> tuple[FeedMessage, ...]:
        """Return the messages that are due, ordered by offset. With `everything`, all of them: the output has ended."""
        is_due = everything or clock - self._flushed_at >= FLUSH_INTERVAL_S
        if is_due:
            self._close()
        log_offset, messages = self.published.log_offset, self._log_messages(at)
        if is_due and self._progress:
            messages.append(self._progress_message(self._progress, log_offset, at))
            self._progress = None
        if is_due and messages:
            self._flushed_at = clock
        return tuple(sorted(messages, key=lambda message: message.position.offset))

    def _log_messages(self, at: datetime) -> list[FeedMessage]:
        chunks, self._closed = self._closed, []
        for chunk in chunks:
            self.published = self.published._replace(
                log_offset=chunk.end, log_bytes=self.published.log_bytes + chunk.size
            )
        return [LogMessage(self._position(chunk.end), at, chunk.stream, chunk.text) for chunk in chunks]

    def _append(self, log: LogLine, end: int) -> None:
        if self.is_quota_used:
            return
        line = f"{log.text}\n".encode()[: min(LOG_MESSAGE_LIMIT_BYTES, JOB_LOG_LIMIT_BYTES - self._bytes)]
        chunk = self._open.get(log.stream, _LogChunk(log.stream, "", 0, 0))
        if chunk.size + len(line) > LOG_MESSAGE_LIMIT_BYTES:
            self._close()
            chunk = _LogChunk(log.stream, "", 0, 0)
        text = chunk.text + line.decode(errors="ignore")
        self._open[log.stream] = _LogChunk(log.stream, text, chunk.size + len(line), end)
        self._bytes += len(line)

    def _close(self) -> None:
        """Close the chunks of both streams. One left open would end before the other, and be published after it."""
        self._closed += sorted(self._open.values(), key=lambda chunk: chunk.end)
        self._open = {}

    def _progress_message(self, pending: _PendingProgress, log_offset: int, at: datetime) -> FeedMessage:
        offset = max(pending.end, log_offset)
        self.published = self.published._replace(progress_offset=offset)
        progress = pending.progress
        return ProgressMessage(
            self._position(offset), at, progress.fraction, progress.stage, progress.done, progress.total
        )

    def _position(self, offset: int) -> FeedPosition:
        return FeedPosition(self._round, self._attempt, offset)
