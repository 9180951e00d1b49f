"""A job's messages, thinned to what followers can take: pure, time is a parameter.

Every 250 ms the latest progress and what was printed since, and log pieces at once when they reach 16 KiB. Offsets rise
strictly in each kind. Between the kinds they never fall: a progress that full pieces had to pass is said at their
offset.
"""

from datetime import datetime
from typing import NamedTuple

from schemas.container import Log, Parsed, Progress, Stream
from schemas.feed import LOG_EVERY_S, LOG_JOB_BYTES, LOG_PIECE_BYTES, PROGRESS_PER_S, LogNote, Note, Place, ProgressNote

EVERY_S = max(LOG_EVERY_S, 1 / PROGRESS_PER_S)


class Said(NamedTuple):
    """How far the notes go: the offsets of the last log and progress note, and the bytes of log in all."""

    log_offset: int = 0
    progress_offset: int = 0
    log_bytes: int = 0


class _Piece(NamedTuple):
    stream: Stream
    text: str
    size: int
    end: int


class _Held(NamedTuple):
    progress: Progress
    end: int


class Coalescer:
    """Takes parsed messages in, gives notes out. `said` continues an earlier life: what it said is not taken again.

    `clock` values are seconds on one monotonic clock.
    """

    def __init__(self, round_: int, attempt: int, said: Said) -> None:
        self._round, self._attempt = round_, attempt
        self.said = said
        self._open: dict[Stream, _Piece] = {}
        self._closed: list[_Piece] = []
        self._bytes = said.log_bytes
        self._progress: _Held | None = None
        self._told_at = float("-inf")

    @property
    def empty(self) -> bool:
        """Whether everything taken in has been given out."""
        return not (self._open or self._closed or self._progress)

    @property
    def full(self) -> bool:
        """Whether a log piece has grown as large as it may: flush before more is taken in."""
        return bool(self._closed)

    @property
    def spent(self) -> bool:
        """Whether the job's share of the feed is used up: no more of its log is said."""
        return self._bytes >= LOG_JOB_BYTES

    def take(self, parsed: Parsed) -> None:
        """Take a message in; one that was said before, or is past the job's share of the feed, is dropped."""
        message, end = parsed
        if isinstance(message, Progress) and end > self.said.progress_offset:
            self._progress = _Held(message, end)
        elif isinstance(message, Log) and end > self.said.log_offset:
            self._append(message, end)

    def flush(self, clock: float, at: datetime, *, everything: bool = False) -> tuple[Note, ...]:
        """The notes whose time has come, in the order of their offsets; `everything` at the end of the output."""
        timely = everything or clock - self._told_at >= EVERY_S
        if timely:
            self._close()
        passed, notes = self.said.log_offset, self._logs(at)
        if timely and self._progress:
            notes.append(self._progressed(self._progress, passed, at))
            self._progress = None
        if timely and notes:
            self._told_at = clock
        return tuple(sorted(notes, key=lambda note: note.place.offset))

    def _logs(self, at: datetime) -> list[Note]:
        pieces, self._closed = self._closed, []
        for piece in pieces:
            self.said = self.said._replace(log_offset=piece.end, log_bytes=self.said.log_bytes + piece.size)
        return [LogNote(self._place(piece.end), at, piece.stream, piece.text) for piece in pieces]

    def _append(self, log: Log, end: int) -> None:
        if self.spent:
            return
        line = f"{log.text}\n".encode()[: min(LOG_PIECE_BYTES, LOG_JOB_BYTES - self._bytes)]
        kept = self._open.get(log.stream, _Piece(log.stream, "", 0, 0))
        if kept.size + len(line) > LOG_PIECE_BYTES:
            self._close()
            kept = _Piece(log.stream, "", 0, 0)
        text = kept.text + line.decode(errors="ignore")
        self._open[log.stream] = _Piece(log.stream, text, kept.size + len(line), end)
        self._bytes += len(line)

    def _close(self) -> None:
        """Both streams at once: a piece left open would end before the other's and be said after it."""
        self._closed += sorted(self._open.values(), key=lambda piece: piece.end)
        self._open = {}

    def _progressed(self, held: _Held, passed: int, at: datetime) -> Note:
        offset = max(held.end, passed)
        self.said = self.said._replace(progress_offset=offset)
        said = held.progress
        return ProgressNote(self._place(offset), at, said.fraction, said.stage, said.done, said.total)

    def _place(self, offset: int) -> Place:
        return Place(self._round, self._attempt, offset)
