"""The port behind which a job runs: seven calls, our words, one error tree.

    EngineError
    ├── StartFailed       the container did not start; `code` is a failure code of PROTOCOLS 1
    ├── NoSuchContainer   the handle names nothing (any more)
    └── EngineGone        the engine does not answer; what it runs may well go on

An engine is an async context manager; leaving it ends nothing that runs. Handles outlive it: the engine of the
runner's next life takes them.
"""

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

from msgspec import Struct, field

from schemas.container_protocol import LINE_LIMIT_BYTES, OutputStream

StartFailure = Literal["image_missing", "engine_error", "gpu_unsupported"]
ContainerState = Literal["created", "running", "exited"]

NO_JOB = ""
WARM_ENV = "LAMPLIGHTER_WARM"  # "1": load, say ready, wait on start.sock
JOB_ENV = "LAMPLIGHTER_JOB"  # the job's folder as the job sees it


class ContainerIdentity(Struct, frozen=True, kw_only=True):
    """Whose container it is; kept with the container, so that a later runner knows it again.

    `job` is NO_JOB for a container that was started ahead of its job: its (round, attempt) say nothing then, and
    `spare` names its folder, in which is written whose it became.
    """

    installation: str
    host: str
    owner: str = ""
    job: str = NO_JOB
    round: int = 0
    attempt: int = 0
    spare: str = ""

    @property
    def folder(self) -> str:
        """The name of the folder it works in; tokens hold no dots, so an attempt's can be taken apart again."""
        return self.spare or f"{self.owner}.{self.job}.{self.round}.{self.attempt}"


class ContainerLimits(Struct, frozen=True):
    """What one container may use. MB are MiB; an engine that cannot keep one says so in EngineInfo.notes."""

    memory_mb: int
    cpus: float
    pids: int = 1024  # torch and ffmpeg start hundreds of threads
    shm_mb: int = 64


class ContainerSpec(Struct, frozen=True, kw_only=True):
    """One container to start. `job_dir` is made ready by the engine: in/, out/, tmp/ and who may write them."""

    identity: ContainerIdentity
    image: str
    folder: str = ""  # the image folder: the process engine's working directory
    command: tuple[str, ...] = ()  # argv in `folder`, for the process engine
    instead: tuple[str, ...] = ()  # argv in place of the image's own program, on every engine
    job_dir: Path
    limits: ContainerLimits
    gpus: tuple[str, ...] = ()  # UUIDs, never indices: those change over a reboot
    env: Mapping[str, str] = field(default_factory=dict)


class OutputCursor(Struct, frozen=True):
    """A place in a container's output.

    `offset` counts bytes over both streams from the start and never falls over the container's life; `position`
    is the engine's own and takes `output` up again there. Bytes lost to log rotation are not counted.
    """

    offset: int
    position: str


class OutputChunk(Struct, frozen=True):
    """Some output of one stream, with the mark just behind it.

    A chunk ends at the end of a line, except inside a line over 64 KiB and at the end of the output: whoever
    takes up at a mark never gets the second half of a message.
    """

    stream: OutputStream
    data: bytes
    cursor: OutputCursor


class ContainerExit(Struct, frozen=True):
    """How it ended. A signal is 128 + its number; `oom_killed` also when only a child of the job was."""

    code: int
    oom_killed: bool = False
    started_at: datetime | None = None
    finished_at: datetime | None = None


class FoundContainer(Struct, frozen=True):
    """A container that is there."""

    handle: str
    identity: ContainerIdentity
    state: ContainerState


class EngineInfo(Struct, frozen=True):
    """What answers. `notes` are for the user: what this engine does not keep."""

    name: str
    version: str
    isolated: bool
    notes: tuple[str, ...] = ()


class EngineError(Exception):
    """Something the engine, not the job, did."""


class StartFailed(EngineError):
    """Nothing runs and nothing is left behind."""

    def __init__(self, code: StartFailure, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class NoSuchContainer(EngineError):
    """No container has this handle."""


class EngineUnavailable(EngineError):
    """The engine does not answer. Containers live on where it says so (Docker: live-restore)."""


class ContainerEngine(Protocol):
    """Starts, follows, ends and finds containers. Every call may raise EngineGone."""

    name: str

    async def start(self, spec: ContainerSpec) -> str:
        """Create and start; the handle. Raises StartFailed, after removing what had been created.

        A program that is not in the image is StartFailed, or exit 127 where an init stands before it (Docker).
        """
        ...

    def output(self, handle: str, since: OutputCursor | None) -> AsyncIterator[OutputChunk]:
        """What it prints from `since` (None: from the start) until it has exited.

        Never blocks the job, however slow the reader. Close it (`aclosing`) when leaving early.
        Raises NoSuchContainer.
        """
        ...

    async def wait(self, handle: str) -> ContainerExit:
        """Returns once it has exited. Raises NoSuchContainer, also for one that was created and never started."""
        ...

    async def stop(self, handle: str, grace_s: float) -> None:
        """TERM, `grace_s` seconds, KILL; returns when it has exited. Nothing to do is no error."""
        ...

    async def remove(self, handle: str) -> None:
        """Make it as if it had never been, running or not. Nothing to do is no error."""
        ...

    async def find(self, installation: str, host: str) -> list[FoundContainer]:
        """Every container of this installation and host, in any state."""
        ...

    async def probe(self) -> EngineInfo:
        """Whether it answers, and what it is. Raises EngineGone."""
        ...


# MERGED runner/engines/cut.py: Where output may be cut into chunks, so that whoever takes up at a mark starts at the
# start of a line.


def complete_length(data: bytes | bytearray, *, ended: bool = False) -> int:
    """How many bytes of `data` may be handed out now: whole lines, a part of a line too long to mean anything, or,
    when nothing can follow, all of it."""
    if ended or (len(data) > LINE_LIMIT_BYTES and b"\n" not in data):
        return len(data)
    return data.rfind(b"\n") + 1


GpuInjection = Literal["cdi", "device_request", "runtime"]


DetectedInjection = GpuInjection | Literal["none"]  # what was found at start
