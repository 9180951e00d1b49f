"""What a Docker daemon's replies mean in our words. Pure; the measured facts behind it: research/runner.md 1.4, 1.5."""

import re
import struct
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

from runner.engines.docker_container_config import identity_from_labels
from runner.engines.port import (
    ContainerExit,
    ContainerState,
    EngineInfo,
    EngineUnavailable,
    FoundContainer,
    OutputChunk,
    OutputCursor,
    StartFailure,
    complete_length,
)
from schemas.container_protocol import OutputStream

ZERO_TIME = "0001-01-01"  # how the daemon writes a time that has not come

_NUMBERS = re.compile(r"(\d+)\.(\d+)\.(\d+)", re.ASCII)

CONTAINER_STATES: Mapping[str, ContainerState] = {
    "created": "created",
    "exited": "exited",
    "dead": "exited",
    "removing": "exited",
}

# Parts of the text of a failed create or start; the rest is engine_error.
START_FAILURES: tuple[tuple[str, StartFailure], ...] = (
    ("no such image", "image_missing"),
    ("could not select device driver", "gpu_unsupported"),
    ("unknown runtime specified", "gpu_unsupported"),
    ("unresolvable cdi devices", "gpu_unsupported"),
    ("cdi device injection failed", "gpu_unsupported"),
    ("nvidia-container", "gpu_unsupported"),
)

# What `info` may lack, and what that costs.
FEATURE_NOTES = {
    "LiveRestoreEnabled": "the daemon ends containers when it restarts: set live-restore",
    "MemoryLimit": "the kernel keeps no memory limit",
    "SwapLimit": "the kernel keeps no limit on swap",
    "PidsLimit": "the kernel keeps no limit on processes",
}


MIN_PROFILE_VERSION = (
    20,
    10,
    10,
)  # the first that passes an errno of our profile on (clone3); before, no thread would start
SECCOMP_OPTION = "name=seccomp"


def supports_profile(info: Mapping[str, Any]) -> bool:
    """Whether the daemon can run containers under our own seccomp profile."""
    return _has_seccomp(info) and _parse_version(info) >= MIN_PROFILE_VERSION


def _has_seccomp(info: Mapping[str, Any]) -> bool:
    return any(option.startswith(SECCOMP_OPTION) for option in info.get("SecurityOptions") or ())


def _parse_version(info: Mapping[str, Any]) -> tuple[int, ...]:
    """Of the daemon, as three numbers; of one that says something else, the newest."""
    found = _NUMBERS.match(info["ServerVersion"])
    return tuple(map(int, found.groups())) if found else (sys.maxsize,)


def _seccomp_notes(info: Mapping[str, Any]) -> tuple[str, ...]:
    """What is missing of the filter of system calls."""
    if not _has_seccomp(info):
        return ("the daemon filters no system calls (no seccomp): a job may attack the kernel; use one that does",)
    if _parse_version(info) < MIN_PROFILE_VERSION:
        oldest = ".".join(map(str, MIN_PROFILE_VERSION))
        return (f"the daemon is older than {oldest} and filters system calls by its own profile: update it",)
    return ()


def classify_start_failure(text: str) -> StartFailure:
    """Why a container did not start."""
    return next((code for part, code in START_FAILURES if part in text.lower()), "engine_error")


def was_started(state: Mapping[str, Any]) -> bool:
    """Whether it ever ran. `wait` on one that did not answers 0 at once: never trust that."""
    return not state["StartedAt"].startswith(ZERO_TIME)


def parse_exit(state: Mapping[str, Any]) -> ContainerExit:
    """How it ended. OOMKilled counts whatever the code is: a parent may hide its child's death behind a 0."""
    return ContainerExit(
        state["ExitCode"], state["OOMKilled"], _parse_time(state["StartedAt"]), _parse_time(state["FinishedAt"])
    )


def parse_container(row: Mapping[str, Any]) -> FoundContainer:
    """A row of the container list."""
    return FoundContainer(row["Id"], identity_from_labels(row["Labels"]), CONTAINER_STATES.get(row["State"], "running"))


def parse_engine_info(info: Mapping[str, Any]) -> EngineInfo:
    """The daemon's word about itself."""
    notes = *(note for name, note in FEATURE_NOTES.items() if not info.get(name)), *_seccomp_notes(info)
    return EngineInfo("docker", info["ServerVersion"], isolated=True, notes=notes)


def _parse_time(text: str) -> datetime | None:
    return None if text.startswith(ZERO_TIME) else datetime.fromisoformat(text).astimezone(UTC)


# MERGED runner/engines/logs.py: Docker's log stream, sans-io: frames out of bytes, and a cursor by which a later life
# takes up exactly there. / A frame is 8 bytes (stream, 0, 0, 0, length in big endian) and, as timestamps are asked
# for, an RFC 3339 time with / nanoseconds, a space, and one line with its newline, or 16 KiB of a longer one. Source:
# Docker Engine API, "Attach to a / container", stream format; moby api/server/httputils/write_log_stream.go.


HEADER = struct.Struct(">BxxxL")
STREAM_BY_NUMBER: dict[int, OutputStream] = {1: "stdout", 2: "stderr"}
SECOND_NS = 1_000_000_000
PARTIAL_LINE_BYTES = (
    16_384  # bytes of an unfinished piece, exactly: moby daemon/logger/copier.go sends one when its buffer is full
)


class LogStreamBroken(EngineUnavailable):
    """The daemon says something is wrong inside the stream; a new request may read on."""


class LogFrame(NamedTuple):
    """One entry of the log."""

    stream: OutputStream
    ns: int  # since 1970
    data: bytes


@lru_cache(maxsize=16)
def _parse_seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


def parse_timestamp_ns(text: str) -> int:
    """RFC 3339 with exactly nine decimals, in whatever zone the daemon runs in, as ns since 1970."""
    return _parse_seconds(text[:19] + text[29:]) * SECOND_NS + int(text[20:29])


class LogFrameParser:
    """Takes the response's bytes as they come."""

    def __init__(self) -> None:
        self._kept = bytearray()

    def feed(self, data: bytes) -> list[LogFrame]:
        """The frames that `data` completes. Raises BrokenLog."""
        self._kept += data
        found, at = [], 0
        while len(self._kept) >= at + HEADER.size:
            kind, length = HEADER.unpack_from(self._kept, at)
            end = at + HEADER.size + length
            if len(self._kept) < end:
                break
            found.append(_parse_frame(kind, bytes(self._kept[at + HEADER.size : end])))
            at = end
        del self._kept[:at]
        return found


def _parse_frame(kind: int, payload: bytes) -> LogFrame:
    stamp, _, line = payload.partition(b" ")
    if kind not in STREAM_BY_NUMBER:
        raise LogStreamBroken(f"Docker broke off the log: {payload.decode(errors='replace')}")
    if not line.endswith(b"\n") and len(line) != PARTIAL_LINE_BYTES:
        line += b"\n"  # driver `local` (20.10) drops the newline behind a long line's last piece
    return LogFrame(STREAM_BY_NUMBER[kind], parse_timestamp_ns(stamp.decode()), line)


class LogCursor:
    """How much of a container's log has been read.

    Times alone cannot say it: a long line's pieces share one, and the two streams overtake each other by a moment.
    So a position is a whole second `base`, from which the log is asked for again, the number of frames already seen
    from there on, and the newest time seen: what is newer is new, even where rotation took frames meanwhile. `base`
    stays at least a second behind, so nothing that is still to come can lie before it.
    """

    def __init__(self, since: OutputCursor | None) -> None:
        self.offset = since.offset if since else 0
        position = since.position if since else "0.0.0"
        self.base, self._seen, self._newest = (int(part) for part in position.split("."))
        self._next, self._next_seen = self._newest // SECOND_NS + 1, 0
        self._skip = 0
        self._held: list[LogFrame] = []

    def rewind(self) -> int:
        """Before asking again: the second to ask from."""
        self._skip = self._seen
        self._held.clear()
        return self.base

    def add(self, frames: Iterable[LogFrame]) -> Iterator[OutputChunk]:
        """The frames not seen before, joined to chunks that end where a line ends."""
        for frame in frames:
            if self._is_repeated(frame):
                continue
            if self._held and self._held[0].stream != frame.stream:
                yield self._chunk(len(self._held))
            self._held.append(frame)
        yield from self._flush(ended=False)

    def close(self) -> Iterator[OutputChunk]:
        """What was held back, once nothing can follow."""
        yield from self._flush(ended=True)

    def _flush(self, *, ended: bool) -> Iterator[OutputChunk]:
        sizes = list(accumulate(len(frame.data) for frame in self._held))
        size = complete_length(b"".join(frame.data for frame in self._held), ended=ended)
        if size:
            yield self._chunk(bisect_right(sizes, size))

    def _is_repeated(self, frame: LogFrame) -> bool:
        if self._skip and frame.ns <= self._newest:
            self._skip -= 1
            return True
        self._skip = 0
        return False

    def _count(self, frame: LogFrame) -> None:
        self._newest = max(self._newest, frame.ns)
        self._seen += 1
        self._next_seen += self._next_seen > 0 or frame.ns >= self._next * SECOND_NS  # the calendar may be set back
        if self._newest >= (self._next + 1) * SECOND_NS:
            self.base, self._seen = self._next, self._next_seen
            self._next, self._next_seen = self._newest // SECOND_NS + 1, 0

    def _chunk(self, frames: int) -> OutputChunk:
        part, self._held = self._held[:frames], self._held[frames:]
        for frame in part:
            self._count(frame)
        data = b"".join(frame.data for frame in part)
        self.offset += len(data)
        return OutputChunk(part[0].stream, data, OutputCursor(self.offset, f"{self.base}.{self._seen}.{self._newest}"))
