"""What a container is given and what it may say (DESIGN 4): `job.json`, lines on stdout, exit codes. No I/O here.

`images/jobkit` writes the same words without importing this file; tests/images/jobkit holds the two together.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

OutputStream = Literal["stdout", "stderr"]

LINE_LIMIT_BYTES = 65_536  # bytes of one line; what is longer is cut and never read as a message
WORD_LIMIT_CHARS = 200  # characters of a stage, a metric's name, a unit
ERROR_MESSAGE_LIMIT_CHARS = 4_000  # characters of an error's message
COUNT_LIMIT = 2**53  # of done and total: what every reader of JSON takes as an integer

JOB_FILE = "job.json"
OUTPUT_FILE = "output.json"  # in out/: the job's `output.data`, an object
START_SOCKET = "start.sock"  # a warm container listens here for the one line that starts its job
PARTIAL_FILE_PREFIX = ".part-"  # a file in out/ that is not finished; never an output


class JobTimeouts(Struct, frozen=True):
    """Seconds the runner will wait: for the whole job, and for the next sign of progress."""

    execution_s: float
    stall_s: float


class JobFile(Struct, frozen=True, kw_only=True):
    """`/job/job.json`. In `input` an asset field holds the file's name inside `in/`, without a folder."""

    id: str
    owner: str
    endpoint: str
    round: int
    attempt: int
    input: dict[str, Any]
    timeouts: JobTimeouts


class ReadyLine(Struct, frozen=True, tag="ready"):
    """A warm container has loaded its model and listens on START_SOCKET."""


class ProgressLine(Struct, frozen=True, tag="progress"):
    """How far the job is: `fraction` in [0, 1], and `done` of `total` of whatever `stage` counts."""

    fraction: float
    stage: Annotated[str, Meta(max_length=WORD_LIMIT_CHARS)] | None = None
    done: int | None = None
    total: int | None = None


class MetricLine(Struct, frozen=True, tag="metric"):
    """A number the job measured of itself."""

    name: Annotated[str, Meta(min_length=1, max_length=WORD_LIMIT_CHARS)]
    value: float
    unit: Annotated[str, Meta(max_length=WORD_LIMIT_CHARS)] = ""


class ErrorLine(Struct, frozen=True, tag="error"):
    """Why the job is about to fail; the exit code says what follows from it."""

    code: Annotated[str, Meta(pattern=r"^[a-z_]{1,40}(?![\s\S])")]
    message: str = ""


class LogLine(Struct, frozen=True):
    """Any other line, without its newline."""

    stream: OutputStream
    text: str


ContainerLine = ReadyLine | ProgressLine | MetricLine | ErrorLine | LogLine


class ParsedLine(NamedTuple):
    """A message and the offset just behind its line, counted as the feeder counts."""

    message: ContainerLine
    end: int


class ExitCode(IntEnum):
    """The exit codes with a meaning of their own; every other one is the verdict table's."""

    DONE = 0
    BAD_JOB = 64
    BAD_INPUT = 65
    GPU_UNUSABLE = 69
    INTERNAL = 70
    TRY_AGAIN = 75


# The failure that a code stands for. It also classes an image's own error code: "hand_hidden" with exit 65 is
# the client's fault, as bad_input is.
EXIT_FAILURES: Mapping[int, str | None] = MappingProxyType(
    {
        ExitCode.DONE: None,
        ExitCode.BAD_JOB: "bad_job",
        ExitCode.BAD_INPUT: "bad_input",
        ExitCode.GPU_UNUSABLE: "gpu_unhealthy",
        ExitCode.INTERNAL: "internal",
        ExitCode.TRY_AGAIN: "internal",
    }
)


class _RawProgressLine(Struct, tag="progress"):
    """Progress as written: any subset of the numbers, in any number format."""

    fraction: float | None = None
    stage: str | None = None
    done: float | None = None
    total: float | None = None


_decode_line = msgspec.json.Decoder(ReadyLine | _RawProgressLine | MetricLine | ErrorLine).decode


def _clamp_count(value: float | None) -> int | None:
    return None if value is None else min(max(0, int(value)), COUNT_LIMIT)


def _tidy_progress(said: _RawProgressLine) -> ProgressLine | None:
    fraction = said.fraction
    if fraction is None and said.total and said.done is not None:
        fraction = said.done / said.total
    if fraction is None or not math.isfinite(fraction):
        return None
    stage = said.stage[:WORD_LIMIT_CHARS] if said.stage is not None else None
    return ProgressLine(min(max(fraction, 0.0), 1.0), stage, _clamp_count(said.done), _clamp_count(said.total))


def _tidy_error(said: ErrorLine) -> ErrorLine:
    return msgspec.structs.replace(said, message=said.message[:ERROR_MESSAGE_LIMIT_CHARS])


_TIDY_BY_TYPE: Mapping[type, Callable[[Any], ContainerLine | None]] = {
    _RawProgressLine: _tidy_progress,
    ErrorLine: _tidy_error,
}


def read_line(stream: OutputStream, line: bytes) -> ContainerLine:
    """What one line without its newline says. Never fails: what is no message is Log.

    Bytes that are no UTF-8 are replaced: an error in another encoding keeps its code.
    """
    text = line.decode(errors="replace")
    if stream == "stdout" and line.lstrip().startswith(b"{"):
        try:
            said = _decode_line(text)
        except (msgspec.MsgspecError, RecursionError):  # deeply nested brackets
            said = None
        tidy = _TIDY_BY_TYPE.get(type(said))
        message = tidy(said) if tidy else said
        if message is not None:
            return message
    return LogLine(stream, text.rstrip("\r"))


class LineParser:
    """Turns one stream's bytes, in chunks of any size, into messages.

    `end` rises strictly as long as the offsets fed do; bytes between two chunks that belong to the other stream
    (offsets count over both) or were lost to log rotation are simply not there.
    """

    def __init__(self, stream: OutputStream) -> None:
        self._stream = stream
        self._kept = bytearray()
        self._end = 0
        self._skipping = False  # inside a line that was cut already

    @property
    def at_line_start(self) -> bool:
        """Whether nothing is kept: only here may a successor resume without losing half a line."""
        return not self._kept and not self._skipping

    def feed(self, data: bytes, offset: int) -> Iterator[ParsedLine]:
        """Messages that `data`, whose first byte lies at `offset`, completes."""
        start = 0
        while start < len(data):
            newline = data.find(b"\n", start)
            stop = newline if newline >= 0 else len(data)
            yield from self._take(data, start, stop, offset)
            start = stop + 1
            if newline >= 0:
                yield from self._finish(offset + start)

    def close(self) -> Iterator[ParsedLine]:
        """The last line, where the stream ended without a newline."""
        if self._kept:
            yield from self._finish(self._end)

    def _take(self, data: bytes, start: int, stop: int, offset: int) -> Iterator[ParsedLine]:
        """Keep a part of a line; cut the line where it passes MAX_LINE."""
        if self._skipping or start == stop:
            return
        room = LINE_LIMIT_BYTES - len(self._kept)
        self._kept += data[start : min(stop, start + room)]
        self._end = offset + min(stop, start + room)
        if stop - start > room:
            self._skipping = True
            yield ParsedLine(LogLine(self._stream, self._kept.decode(errors="replace")), self._end)
            self._kept.clear()

    def _finish(self, end: int) -> Iterator[ParsedLine]:
        if not self._skipping:
            yield ParsedLine(read_line(self._stream, bytes(self._kept)), end)
        self._kept.clear()
        self._skipping = False
