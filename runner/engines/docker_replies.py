"""Replies of a Docker daemon, translated to the types of the port: containers, pulls and logs. Pure.

A pull and a log are streams, and are read sans-io. A pull is JSON lines with its progress, and why it failed. A log is
frames of bytes, with a cursor at which a later process resumes exactly.
"""

import re
import struct
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import msgspec

from runner.engines.docker_container_config import identity_from_labels
from runner.engines.port import (
    ContainerExit,
    ContainerState,
    EngineInfo,
    EngineUnavailable,
    FoundContainer,
    OutputChunk,
    OutputCursor,
    PullFailed,
    PullFailure,
    PullProgress,
    StartFailure,
    complete_length,
)
from schemas.container_protocol import OutputStream
from schemas.endpoint_parts import (
    ENGINE_RUNTIME_NAMES,
    EngineRuntime,
    ImageReference,
    ImageReferenceInvalid,
    RuntimeName,
    parse_image_reference,
)

# Parts of the daemon's text, the most telling first: its text for a refused login also says that there may be no
# such repository, because registries do not tell the two apart to a stranger.
PULL_FAILURES: tuple[tuple[str, PullFailure], ...] = (
    ("no space left on device", PullFailure.DISK_FULL),
    ("disk quota exceeded", PullFailure.DISK_FULL),
    ("manifest unknown", PullFailure.NOT_FOUND),
    ("manifest for", PullFailure.NOT_FOUND),
    ("name unknown", PullFailure.NOT_FOUND),
    ("unauthorized", PullFailure.LOGIN_REFUSED),
    ("authentication required", PullFailure.LOGIN_REFUSED),
    ("no basic auth credentials", PullFailure.LOGIN_REFUSED),
    ("pull access denied", PullFailure.LOGIN_REFUSED),
    ("denied", PullFailure.LOGIN_REFUSED),
    ("incorrect username or password", PullFailure.LOGIN_REFUSED),
    ("not found", PullFailure.NOT_FOUND),
    ("no such host", PullFailure.REGISTRY_UNREACHABLE),
    ("connection refused", PullFailure.REGISTRY_UNREACHABLE),
    ("no route to host", PullFailure.REGISTRY_UNREACHABLE),
    ("network is unreachable", PullFailure.REGISTRY_UNREACHABLE),
    ("timeout", PullFailure.REGISTRY_UNREACHABLE),
    ("temporary failure in name resolution", PullFailure.REGISTRY_UNREACHABLE),
    ("x509", PullFailure.REGISTRY_UNREACHABLE),
    ("server gave http response to https client", PullFailure.REGISTRY_UNREACHABLE),
    ("eof", PullFailure.INTERRUPTED),
    ("connection reset", PullFailure.INTERRUPTED),
    ("broken pipe", PullFailure.INTERRUPTED),
)


def classify_pull_failure(text: str) -> PullFailed:
    """Return the failure for the daemon's text."""
    code = next((code for part, code in PULL_FAILURES if part in text.lower()), PullFailure.FAILED)
    return PullFailed(code, " ".join(text.split()))


class _Layer:
    """Bytes of one layer. Its size is known when its download begins."""

    def __init__(self) -> None:
        self.done = 0
        self.total = 0
        self.is_complete = False


# What the daemon says of a layer that needs no more downloading.
_COMPLETE_STATUSES = frozenset({"Download complete", "Pull complete", "Already exists", "Extracting"})
_LAYER_STATUSES = _COMPLETE_STATUSES | {"Pulling fs layer", "Waiting", "Downloading", "Verifying Checksum", "Retrying"}


class PullProgressParser:
    """Parses the bytes of the answer as they arrive."""

    def __init__(self) -> None:
        self._kept = b""
        self._layers: dict[str, _Layer] = {}

    def feed(self, data: bytes) -> Iterator[PullProgress]:
        """Yield the progress after these bytes, if they held any. Raises PullFailed for the daemon's error."""
        *lines, self._kept = (self._kept + data).split(b"\n")
        has_changed = False
        for line in lines:
            has_changed = self._read_line(line) or has_changed
        if has_changed:
            yield self._progress()

    def _read_line(self, line: bytes) -> bool:
        try:
            message: Any = msgspec.json.decode(line)
        except msgspec.DecodeError:
            return False  # an empty line
        if not isinstance(message, dict):
            return False
        if "error" in message or "errorDetail" in message:
            detail = message.get("errorDetail") or {}
            raise classify_pull_failure(str(detail.get("message") or message.get("error")))
        status, name = str(message.get("status", "")), message.get("id")
        if name is None or not status.startswith(tuple(_LAYER_STATUSES)):
            return False
        layer = self._layers.setdefault(name, _Layer())
        detail = message.get("progressDetail") or {}
        if status == "Downloading":
            layer.done, layer.total = int(detail.get("current") or 0), int(detail.get("total") or 0)
        elif status in _COMPLETE_STATUSES:
            layer.is_complete, layer.done = True, layer.total
        return True

    def _progress(self) -> PullProgress:
        layers = self._layers.values()
        shares = [1.0 if one.is_complete else one.done / one.total if one.total > 0 else 0.0 for one in layers]
        return PullProgress(
            sum(one.done for one in layers),
            sum(max(one.total, one.done) for one in layers),
            int(100 * sum(shares) / len(shares)),
        )


ZERO_TIME = "0001-01-01"  # the daemon's value for a time that is not set

NVPROXY_FLAGS = frozenset({"nvproxy", "nvproxy=true"})  # of runsc

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

# Features that `info` may lack, and the consequence.
FEATURE_NOTES = {
    "LiveRestoreEnabled": "the daemon stops containers when it restarts: set live-restore",
    "MemoryLimit": "the kernel enforces no memory limit",
    "SwapLimit": "the kernel enforces no swap limit",
    "PidsLimit": "the kernel enforces no limit on processes",
}


# The first version that passes on an errno of our profile (clone3). With an older one, no thread would start.
MIN_PROFILE_VERSION = (20, 10, 10)
SECCOMP_OPTION = "name=seccomp"


def supports_profile(info: Mapping[str, Any]) -> bool:
    """Return whether the daemon can run containers under our own seccomp profile."""
    return _has_seccomp(info) and _parse_version(info) >= MIN_PROFILE_VERSION


def _has_seccomp(info: Mapping[str, Any]) -> bool:
    return any(option.startswith(SECCOMP_OPTION) for option in info.get("SecurityOptions") or ())


def _parse_version(info: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the daemon's version as three numbers; the newest for a version in another format."""
    found = _NUMBERS.match(info["ServerVersion"])
    return tuple(map(int, found.groups())) if found else (sys.maxsize,)


def _seccomp_notes(info: Mapping[str, Any]) -> tuple[str, ...]:
    """Return notes about a system call filter that is missing or too old."""
    if not _has_seccomp(info):
        return ("the daemon filters no system calls (no seccomp): a job may attack the kernel; use one with seccomp",)
    if _parse_version(info) < MIN_PROFILE_VERSION:
        oldest = ".".join(map(str, MIN_PROFILE_VERSION))
        return (f"the daemon is older than {oldest} and uses its own seccomp profile: update it",)
    return ()


def classify_start_failure(text: str) -> StartFailure:
    """Return the failure code for the text of a failed start."""
    return next((code for part, code in START_FAILURES if part in text.lower()), "engine_error")


def was_started(state: Mapping[str, Any]) -> bool:
    """Return whether the container ever ran. `wait` returns 0 at once for one that did not, so it cannot be trusted."""
    return not state["StartedAt"].startswith(ZERO_TIME)


def parse_exit(state: Mapping[str, Any]) -> ContainerExit:
    """Return how the container exited.

    OOMKilled counts whatever the code is: a parent may exit with 0 after its child died.
    """
    return ContainerExit(
        state["ExitCode"], state["OOMKilled"], _parse_time(state["StartedAt"]), _parse_time(state["FinishedAt"])
    )


def parse_container(row: Mapping[str, Any]) -> FoundContainer:
    """Parse a row of the container list."""
    return FoundContainer(row["Id"], identity_from_labels(row["Labels"]), CONTAINER_STATES.get(row["State"], "running"))


def parse_engine_info(info: Mapping[str, Any]) -> EngineInfo:
    """Parse the daemon's info; the notes name the limits that it does not enforce."""
    notes = *(note for name, note in FEATURE_NOTES.items() if not info.get(name)), *_seccomp_notes(info)
    return EngineInfo(
        "docker",
        info["ServerVersion"],
        isolated=True,
        notes=notes,
        runtimes=parse_runtimes(info),
        isolation=_default_isolation(info),
        has_egress=True,
    )


def parse_runtimes(info: Mapping[str, Any]) -> tuple[EngineRuntime, ...]:
    """Return the runtimes that endpoints can ask for, each under the first of its names that the daemon has."""
    registered: Mapping[str, Any] = info.get("Runtimes") or {}
    return tuple(
        EngineRuntime(name, found, _can_use_gpus(name, registered[found]))
        for name, names in ENGINE_RUNTIME_NAMES.items()
        if (found := next((one for one in names if one in registered), None)) is not None
    )


def _can_use_gpus(name: RuntimeName, registered: Mapping[str, Any]) -> bool:
    """Return whether the runtime can give containers GPUs: gVisor must be registered with its driver proxy."""
    arguments = registered.get("runtimeArgs") or ()
    return name == "runc" or (name == "runsc" and any(one.lstrip("-") in NVPROXY_FLAGS for one in arguments))


def _default_isolation(info: Mapping[str, Any]) -> str:
    """Return what isolates a container by default. NVIDIA's runtime is runc with a hook."""
    default = info.get("DefaultRuntime") or "runc"
    known = {found: name for name, names in ENGINE_RUNTIME_NAMES.items() for found in names}
    return "runc" if default == "nvidia" else known.get(default, default)


def manifest_digest(repo_digests: Iterable[str], reference: ImageReference) -> str | None:
    """Return the digest under which the registry of `reference` has the image; None if it was built here."""
    for entry in repo_digests:
        name, _, digest = entry.partition("@")
        with suppress(ImageReferenceInvalid):
            if parse_image_reference(name).name == reference.name:
                return digest
    return None


def _parse_time(text: str) -> datetime | None:
    return None if text.startswith(ZERO_TIME) else datetime.fromisoformat(text).astimezone(UTC)


# The log stream. A frame is 8 bytes (stream, 0, 0, 0, length in big endian) and a payload. Timestamps are requested, so
# the payload is an RFC 3339 time with nanoseconds, a space, and one line with its newline, or 16 KiB of a longer line.
# Sources: Docker Engine API, "Attach to a container", stream format; moby api/server/httputils/write_log_stream.go.

HEADER = struct.Struct(">BxxxL")
STREAM_BY_NUMBER: dict[int, OutputStream] = {1: "stdout", 2: "stderr"}
SECOND_NS = 1_000_000_000
# The exact size of an unfinished piece of a line: moby daemon/logger/copier.go sends it when its buffer is full.
PARTIAL_LINE_BYTES = 16_384


class LogStreamBroken(EngineUnavailable):
    """The daemon reported an error inside the stream; a new request may continue."""


class LogFrame(NamedTuple):
    """One entry of the log: a line, or a piece of a long line."""

    stream: OutputStream
    ns: int  # since 1970
    data: bytes


@lru_cache(maxsize=16)
def _parse_seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


def parse_timestamp_ns(text: str) -> int:
    """Parse an RFC 3339 time with exactly nine decimals, in any time zone; return ns since 1970."""
    return _parse_seconds(text[:19] + text[29:]) * SECOND_NS + int(text[20:29])


class LogFrameParser:
    """Parses the bytes of the response as they arrive."""

    def __init__(self) -> None:
        self._kept = bytearray()

    def feed(self, data: bytes) -> list[LogFrame]:
        """Return the frames that `data` completes. Raises LogStreamBroken."""
        self._kept += data
        found, at = [], 0
        while len(self._kept) >= at + HEADER.size:
            stream_number, length = HEADER.unpack_from(self._kept, at)
            end = at + HEADER.size + length
            if len(self._kept) < end:
                break
            found.append(_parse_frame(stream_number, bytes(self._kept[at + HEADER.size : end])))
            at = end
        del self._kept[:at]
        return found


def _parse_frame(stream_number: int, payload: bytes) -> LogFrame:
    stamp, _, line = payload.partition(b" ")
    if stream_number not in STREAM_BY_NUMBER:
        raise LogStreamBroken(f"Docker aborted the log stream: {payload.decode(errors='replace')}")
    if not line.endswith(b"\n") and len(line) != PARTIAL_LINE_BYTES:
        line += b"\n"  # driver `local` (20.10) drops the newline after the last piece of a long line
    return LogFrame(STREAM_BY_NUMBER[stream_number], parse_timestamp_ns(stamp.decode()), line)


class LogCursor:
    """Position in a container's log.

    A time alone is not enough: the pieces of a long line share one, and the two streams overtake each other by a
    moment. So a position has three parts. `base` is the whole second from which the log is requested again. The second
    part is the number of frames already seen from there on. The third is the newest time seen: a frame newer than that
    is new, even if rotation removed frames in the meantime. `base` stays at least a second behind, so no later frame
    can lie before it.
    """

    def __init__(self, since: OutputCursor | None) -> None:
        self.offset = since.offset if since else 0
        position = since.position if since else "0.0.0"
        self.base, self._seen, self._newest = (int(part) for part in position.split("."))
        self._next, self._next_seen = self._newest // SECOND_NS + 1, 0
        self._skip = 0
        self._held: list[LogFrame] = []

    def rewind(self) -> int:
        """Prepare for a new request; return the second to request from."""
        self._skip = self._seen
        self._held.clear()
        return self.base

    def add(self, frames: Iterable[LogFrame]) -> Iterator[OutputChunk]:
        """Yield the frames not seen before, joined to chunks that end at the end of a line."""
        for frame in frames:
            if self._is_repeated(frame):
                continue
            if self._held and self._held[0].stream != frame.stream:
                yield self._chunk(len(self._held))
            self._held.append(frame)
        yield from self._flush(ended=False)

    def close(self) -> Iterator[OutputChunk]:
        """Yield what was held back, once no more can follow."""
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
