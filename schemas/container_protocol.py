"""The protocol between runner and container: `job.json`, lines on stdout, exit codes. No I/O here.

`images/jobkit` implements the same protocol without importing this file; tests/images/jobkit compares the two.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

OutputStream = Literal["stdout", "stderr"]

LINE_LIMIT_BYTES = 65_536  # of one line; a longer line is cut and is only log
WORD_LIMIT_CHARS = 200  # of a stage, a metric's name, a unit
ERROR_MESSAGE_LIMIT_CHARS = 4_000  # of an error's message
COUNT_LIMIT = 2**53  # of done and total: every JSON reader takes such a number as an integer

JOB_FILE = "job.json"
OUTPUT_FILE = "output.json"  # in out/: the job's `output.data`, an object
START_SOCKET = "start.sock"  # a warm container listens here for the one line that starts its job
REUSED_START_SOCKET = "start-{}.sock"  # the same in a reused container, for the job of this number
PARTIAL_FILE_PREFIX = ".part-"  # of an unfinished file in out/, which is never an output


def start_socket(number: int) -> str:
    """Return the name of the socket that starts the job of this number; 0: the one job of a container."""
    return REUSED_START_SOCKET.format(number) if number else START_SOCKET


class JobTimeouts(Struct, frozen=True):
    """The timeouts of the runner in seconds: for the whole job, and for new progress."""

    execution_s: float
    stall_s: float


class JobFile(Struct, frozen=True, kw_only=True):
    """`/job/job.json`. In `input`, an asset field holds the name of the file inside `in/`, without a folder.

    `traceparent`: the parent for spans of the program (W3C Trace Context); None if the job is not traced.
    """

    id: str
    owner: str
    endpoint: str
    round: int
    attempt: int
    input: dict[str, Any]
    timeouts: JobTimeouts
    traceparent: str | None = None


class ReadyLine(Struct, frozen=True, tag="ready"):
    """A warm container has loaded its model and listens on its start socket.

    `job` is the number of the job that a reused container waits for; 0 in a container that runs one job.
    """

    job: int = 0


class EndLine(Struct, frozen=True, tag="end"):
    """A job of a reused container has ended, as if by exit with `code`. The container waits for the next one.

    A reused container prints this line and the ready line on both streams: nothing else says which output of stderr
    belongs to which job, because the two streams are read apart.
    """

    code: Annotated[int, Meta(ge=0, le=255)]


class ProgressLine(Struct, frozen=True, tag="progress"):
    """The progress of the job: `fraction` in [0, 1], and `done` of `total` units of the stage."""

    fraction: float
    stage: Annotated[str, Meta(max_length=WORD_LIMIT_CHARS)] | None = None
    done: int | None = None
    total: int | None = None


class MetricLine(Struct, frozen=True, tag="metric"):
    """A number that the job measured of itself."""

    name: Annotated[str, Meta(min_length=1, max_length=WORD_LIMIT_CHARS)]
    value: float
    unit: Annotated[str, Meta(max_length=WORD_LIMIT_CHARS)] = ""


class ErrorLine(Struct, frozen=True, tag="error"):
    """Why the job is about to fail. The exit code says whether it is tried again."""

    code: Annotated[str, Meta(pattern=r"^[a-z_]{1,40}(?![\s\S])")]
    message: str = ""


class LogLine(Struct, frozen=True):
    """Any other line, without its newline."""

    stream: OutputStream
    text: str


ContainerLine = ReadyLine | EndLine | ProgressLine | MetricLine | ErrorLine | LogLine


class ParsedLine(NamedTuple):
    """A message and the offset right after its line."""

    message: ContainerLine
    end: int


class ExitCode(IntEnum):
    """The exit codes with a meaning of their own. The verdict table covers all others."""

    DONE = 0
    BAD_JOB = 64
    BAD_INPUT = 65
    GPU_UNUSABLE = 69
    INTERNAL = 70
    TRY_AGAIN = 75


# The failure that an exit code stands for. It also classifies an image's own error code: "hand_hidden" with exit 65 is
# the client's fault, like bad_input.
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
    """Progress as the job wrote it: any subset of the numbers, in any number format."""

    fraction: float | None = None
    stage: str | None = None
    done: float | None = None
    total: float | None = None


_decode_line = msgspec.json.Decoder(ReadyLine | EndLine | _RawProgressLine | MetricLine | ErrorLine).decode


def _clamp_count(value: float | None) -> int | None:
    return None if value is None else min(max(0, int(value)), COUNT_LIMIT)


def _tidy_progress(raw: _RawProgressLine) -> ProgressLine | None:
    fraction = raw.fraction
    if fraction is None and raw.total and raw.done is not None:
        fraction = raw.done / raw.total
    if fraction is None or not math.isfinite(fraction):
        return None
    stage = raw.stage[:WORD_LIMIT_CHARS] if raw.stage is not None else None
    return ProgressLine(min(max(fraction, 0.0), 1.0), stage, _clamp_count(raw.done), _clamp_count(raw.total))


def _tidy_error(raw: ErrorLine) -> ErrorLine:
    return msgspec.structs.replace(raw, message=raw.message[:ERROR_MESSAGE_LIMIT_CHARS])


_TIDY_BY_TYPE: Mapping[type, Callable[[Any], ContainerLine | None]] = {
    _RawProgressLine: _tidy_progress,
    ErrorLine: _tidy_error,
}


def read_line(stream: OutputStream, line: bytes) -> ContainerLine:
    """Return the message in one line without its newline. Never fails: any other line is a LogLine.

    Bytes that are not UTF-8 are replaced, so that an error line in another encoding keeps its code.
    """
    text = line.decode(errors="replace")
    if stream == "stdout" and line.lstrip().startswith(b"{"):
        try:
            raw = _decode_line(text)
        except (msgspec.MsgspecError, RecursionError):  # deeply nested brackets
            raw = None
        tidy = _TIDY_BY_TYPE.get(type(raw))
        message = tidy(raw) if tidy else raw
        if message is not None:
            return message
    return LogLine(stream, text.rstrip("\r"))


def read_mark(line: ParsedLine) -> ReadyLine | EndLine | None:
    """Return the ready line or the end line in a line of either stream, None in any other line.

    It may stand after an incomplete line, such as a progress bar.
    """
    message = line.message
    if isinstance(message, LogLine) and (start := message.text.rfind('{"type"')) >= 0:
        message = read_line("stdout", message.text[start:].encode())
    return message if isinstance(message, ReadyLine | EndLine) else None


class LineParser:
    """Turn the bytes of one stream, in chunks of any size, into messages.

    `end` rises strictly if the offsets of the chunks do. Bytes of the other stream (offsets count over both), and bytes
    lost to log rotation, may be missing between two chunks.
    """

    def __init__(self, stream: OutputStream) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self._end = 0
        self._skipping = False  # inside a line that was cut

    @property
    def at_line_start(self) -> bool:
        """Whether no half line is buffered. Only here may another parser continue without losing one."""
        return not self._buffer and not self._skipping

    def feed(self, data: bytes, offset: int) -> Iterator[ParsedLine]:
        """Yield the messages that `data`, whose first byte has this `offset`, completes."""
        start = 0
        while start < len(data):
            newline = data.find(b"\n", start)
            stop = newline if newline >= 0 else len(data)
            yield from self._take(data, start, stop, offset)
            start = stop + 1
            if newline >= 0:
                yield from self._finish(offset + start)

    def close(self) -> Iterator[ParsedLine]:
        """Yield the last line if the stream ended without a newline."""
        if self._buffer:
            yield from self._finish(self._end)

    def _take(self, data: bytes, start: int, stop: int, offset: int) -> Iterator[ParsedLine]:
        """Buffer a part of a line; cut the line at LINE_LIMIT_BYTES."""
        if self._skipping or start == stop:
            return
        room = LINE_LIMIT_BYTES - len(self._buffer)
        self._buffer += data[start : min(stop, start + room)]
        self._end = offset + min(stop, start + room)
        if stop - start > room:
            self._skipping = True
            yield ParsedLine(LogLine(self._stream, self._buffer.decode(errors="replace")), self._end)
            self._buffer.clear()

    def _finish(self, end: int) -> Iterator[ParsedLine]:
        if not self._skipping:
            yield ParsedLine(read_line(self._stream, bytes(self._buffer)), end)
        self._buffer.clear()
        self._skipping = False
