"""Filters for a job's output: its secrets are masked, its messages throttled, and of stderr the last lines kept.

A secret is recognized as it is, in JSON, in URLs, in hexadecimal digits, and in base64, also in the middle of a longer
text that was encoded. Any other encoding is not, nor base64 that is wrapped into lines. A value of several lines is
masked line by line too, but each line only as it is and in JSON.

The throttle lets followers keep up. Every 250 ms it emits the latest progress and the log since then, and a log chunk
at once when it reaches 16 KiB. Offsets of log messages rise strictly, and so do those of progress messages. Between
the two kinds they never decrease: a progress message that full chunks have overtaken gets their offset. It is pure;
time is a parameter.

The end of stderr is kept for the record of a job that fails.
"""

import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import quote, quote_plus

import msgspec
from msgspec import Struct

from runner.engines.port import OutputChunk
from schemas.container_protocol import ErrorLine, LogLine, MetricLine, OutputStream, ParsedLine, ProgressLine
from schemas.endpoint_parts import SECRET_LEAST_BYTES
from schemas.events import (
    JOB_LOG_LIMIT_BYTES,
    LOG_INTERVAL_S,
    LOG_MESSAGE_LIMIT_BYTES,
    PROGRESS_LIMIT_PER_S,
    FeedMessage,
    FeedPosition,
    LogMessage,
    ProgressMessage,
)

MASK = "*"  # for each byte, so that offsets in the output stay valid


class SecretRedactor:
    """Masks `values`, as they are and encoded. It keeps the end of each stream between two chunks."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        values = frozenset(filter(_is_long, values))
        lines = frozenset(line for value in values for line in value.splitlines() if _is_long(line))
        found = {form for text in values | lines for form in _printed_forms(text)}
        found |= {form for value in values for form in _encoded_forms(value) if _is_long(form)}
        self._texts = sorted(found, key=len, reverse=True)
        self._forms = [text.encode() for text in self._texts]
        self._longest = max(map(len, self._forms), default=0)
        self._tails: dict[OutputStream, bytes] = {}

    def redact(self, stream: OutputStream, data: bytes) -> bytes:
        """Return the chunk with each value masked, also one that began in the chunk before."""
        if not self._forms:
            return data
        tail = self._tails.pop(stream, b"")
        joined = tail + data
        masked = self._mask(joined)
        if not data.endswith(b"\n"):  # a line that is cut: its next part may complete a value
            self._tails[stream] = joined[1 - self._longest :]
            begun = max(_begun_length(joined, form) for form in self._forms)
            masked[len(masked) - begun :] = MASK.encode() * begun
        return bytes(masked[len(tail) :])

    def _mask(self, data: bytes) -> bytearray:
        masked = bytearray(data)
        for form in self._forms:
            at = data.find(form)
            while at >= 0:  # forms may overlap
                masked[at : at + len(form)] = MASK.encode() * len(form)
                at = data.find(form, at + 1)
        return masked

    def redact_message(self, message: Any) -> Any:
        """Return a message of the job with the values in its texts masked, however they were escaped in its line."""
        if self._texts and isinstance(message, ProgressLine | MetricLine | ErrorLine):
            texts = {name: self.redact_value(value) for name, value in msgspec.structs.asdict(message).items()}
            return msgspec.structs.replace(message, **texts)
        return message

    def redact_value(self, value: Any) -> Any:
        """Return a JSON value with the values of secrets masked in each of its texts."""
        if isinstance(value, str):
            for text in self._texts:
                value = value.replace(text, MASK * len(text))
        elif isinstance(value, dict):
            return {self.redact_value(name): self.redact_value(inner) for name, inner in value.items()}
        elif isinstance(value, list):
            return [self.redact_value(inner) for inner in value]
        return value


def _is_long(text: str) -> bool:
    return len(text.encode()) >= SECRET_LEAST_BYTES


def _printed_forms(text: str) -> Iterable[str]:
    """Return the text as programs print it: as it is, and in JSON, where a slash may be escaped."""
    for form in (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]):
        yield form
        yield form.replace("/", "\\/")


def _encoded_forms(value: str) -> Iterable[str]:
    """Return the value in the encodings of URLs and HTTP headers."""
    data = value.encode()
    yield from (data.hex(), data.hex().upper())
    for form in (quote(value), quote(value, safe=""), quote_plus(value), quote_plus(value, safe="/")):
        yield form
        yield _lower_escapes(form)
    for before in range(3):  # bytes that stand before the value in its group of three
        for encode in (b64encode, urlsafe_b64encode):
            # The first and the last character also depend on the text around the value.
            whole = encode(bytes(before) + data).decode().rstrip("=")
            last = len(whole) - (1 if (before + len(data)) % 3 else 0)
            yield whole[-(-before * 8 // 6) : last]


def _lower_escapes(quoted: str) -> str:
    """Return the text with `%2f` in place of `%2F`."""
    head, *parts = quoted.split("%")
    return "".join((head, *(f"%{part[:2].lower()}{part[2:]}" for part in parts)))


def _begun_length(data: bytes, form: bytes) -> int:
    """Return how many bytes at the end of `data` are the beginning of `form`."""
    end = data[max(0, len(data) - len(form) + 1) :]
    at = end.find(form[:1])
    while at >= 0 and not form.startswith(end[at:]):
        at = end.find(form[:1], at + 1)
    return len(end) - at if at >= 0 else 0


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


STDERR_TAIL_LINES = 5
STDERR_LINE_LIMIT_CHARS = 300  # a longer line keeps its end, where the message is
REUSE_MARKS = (b'{"type": "ready"', b'{"type": "end"', b'{"type":"ready"', b'{"type":"end"')  # of a reused container
STDERR_SCAN_LIMIT_BYTES = 16 * 1024  # of a chunk, so that a flood of output takes little CPU time


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
        lines = chunk.data[-STDERR_SCAN_LIMIT_BYTES:].split(b"\n")
        last = [line for line in lines if line.strip() and not line.startswith(REUSE_MARKS)][-STDERR_TAIL_LINES:]
        return StderrTail((*self.lines, *map(_escape_unprintable, last))[-STDERR_TAIL_LINES:], chunk.cursor.offset)


def _escape_unprintable(line: bytes) -> str:
    """Return the line without characters that a terminal obeys.

    These are control characters, and those that change the direction of a text.
    """
    text = line[-4 * STDERR_LINE_LIMIT_CHARS :].decode(errors="replace").rstrip("\r").expandtabs(4)
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return shown if len(shown) <= STDERR_LINE_LIMIT_CHARS else f"…{shown[1 - STDERR_LINE_LIMIT_CHARS :]}"
