"""Ports to a container engine and to its images.

`ContainerEngine` has seven calls, two about GPUs, one about leaks, and one error tree:

    EngineError
    ├── StartFailed        the container did not start; `code` is a failure code of the API
    ├── NoSuchContainer    no container has this handle
    └── EngineUnavailable  the engine does not answer; its containers may go on

An engine is an async context manager; leaving it ends nothing that runs. Handles outlive the engine object: the engine
of the next runner process accepts them.

The port assumes that containers run on the runner's own host. The runner writes the job's folder (`job_dir`) on its
file system, connects to a unix socket in that folder to start the job of a warm container, and matches pids of GPU
processes with those of the container.

`ImageStore` has four calls: look, pull, remove, and how much space is left. A pull that did not bring the image raises
PullFailed, whose `code` says why. Ids are the engine's own (`sha256:…` of the image's configuration).

Names of engines (EngineName) are also known to `runner/engines/selection.py` and `deploy/demo.py`, and in
`lamplighter/cli` to `up.py` and `try_image.py` (`--engine`), `machine_checks.py`, `doctor.py` and `display.py`.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal, Protocol, Self

from msgspec import Struct, field

from schemas.container_protocol import LINE_LIMIT_BYTES, OutputStream
from schemas.endpoint_parts import PROCESS_ISOLATION, EgressPolicy, EngineRuntime, ImageReference, RuntimeName

EngineName = Literal["docker", "process"]
GpuInjection = Literal["cdi", "device_request", "runtime"]
DetectedInjection = GpuInjection | Literal["none"]  # the result of the trial at start
StartFailure = Literal["image_missing", "engine_error", "gpu_unsupported"]
ContainerState = Literal["created", "running", "exited"]

MIB = 1 << 20  # bytes; what settings call MB
NO_JOB = ""
WARM_ENV = "LAMPLIGHTER_WARM"  # "1": load, print `ready`, wait on start.sock
REUSE_ENV = "LAMPLIGHTER_REUSE"  # "1", with WARM_ENV: wait on start-1.sock, run the job in 1/, then on start-2.sock…
JOB_ENV = "LAMPLIGHTER_JOB"  # the job's folder as the job sees it


class ContainerIdentity(Struct, frozen=True, kw_only=True):
    """Owner and job of a container. The engine keeps it with the container, so that a later runner recognizes it.

    `job` is NO_JOB for a container that was started before its job. Its `round` and `attempt` mean nothing then.
    `warm_dir` names its folder; `claim.json` in that folder says which job it was assigned.
    """

    installation: str
    host: str
    owner: str = ""
    job: str = NO_JOB
    round: int = 0
    attempt: int = 0
    warm_dir: str = field(default="", name="spare")

    @property
    def folder(self) -> str:
        """Return the name of the container's folder. Tokens contain no dots, so the name can be parsed again."""
        return self.warm_dir or f"{self.owner}.{self.job}.{self.round}.{self.attempt}"


class ContainerLimits(Struct, frozen=True):
    """Limits of one container. MB are MiB. An engine that cannot enforce a limit says so in EngineInfo.notes."""

    memory_mb: int
    cpus: float
    pids: int = 1024  # torch and ffmpeg start hundreds of threads
    shm_mb: int = 64


class MpsClient(Struct, frozen=True):
    """The MPS access of a container: the daemon's pipe directory, and how much of a GPU its kernels may use."""

    pipe_dir: str
    percentage: int

    @property
    def env(self) -> dict[str, str]:
        """Return the variables that CUDA reads."""
        return {
            "CUDA_MPS_PIPE_DIRECTORY": self.pipe_dir,
            "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(self.percentage),
        }


class FolderMount(Struct, frozen=True, kw_only=True):
    """A folder of the host that a container gets: a volume, read-only, or a cache, which the engine lets it write to.

    `target` is its path in a container. `variables` name the environment variables that hold its path for the job.
    `is_private`: only the job's user may read the files in it, such as secrets.
    """

    source: Path
    target: str
    variables: tuple[str, ...]
    is_writable: bool = False
    is_private: bool = False


class ContainerSpec(Struct, frozen=True, kw_only=True):
    """One container to start. The engine prepares `job_dir`: in/, out/, tmp/ and their permissions.

    The sources of `mounts` exist.
    """

    identity: ContainerIdentity
    image: str
    folder: str = ""  # the image folder: the process engine's working directory
    command: tuple[str, ...] = ()  # argv in `folder`, for the process engine
    entrypoint_override: tuple[str, ...] = ()  # argv that replaces the image's own program, on every engine
    job_dir: Path
    limits: ContainerLimits
    gpus: tuple[str, ...] = ()  # UUIDs, never indices: a reboot changes those
    runtime: RuntimeName | None = None  # None: the engine's default
    egress: EgressPolicy | None = None  # None: no network
    network_image: str | None = None  # with Python 3, for the network of `egress`; None: `image` has it
    mps: MpsClient | None = None
    mounts: tuple[FolderMount, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


class OutputCursor(Struct, frozen=True):
    """A position in a container's output.

    `offset` counts the bytes of both streams from the start; it never decreases. `position` belongs to the engine:
    `output` resumes there. Bytes lost to log rotation are not counted.
    """

    offset: int
    position: str


class OutputChunk(Struct, frozen=True):
    """Some output of one stream, and the cursor after it.

    A chunk ends at the end of a line, except inside a line over 64 KiB and at the end of the output. So a reader that
    resumes at a cursor never gets the second half of a message.
    """

    stream: OutputStream
    data: bytes
    cursor: OutputCursor


class ContainerExit(Struct, frozen=True):
    """Exit of a container.

    A signal is 128 + its number. `oom_killed` is also set if only a child of the job was killed.
    """

    code: int
    oom_killed: bool = False
    started_at: datetime | None = None
    finished_at: datetime | None = None


class FoundContainer(Struct, frozen=True):
    """A container that exists, in any state."""

    handle: str
    identity: ContainerIdentity
    state: ContainerState


class ContainerUsage(Struct, frozen=True):
    """Usage of a running container: its processes, and their memory without files and shared memory.

    `scratch_files` and `scratch_bytes` are in its own /tmp and /dev/shm. They are 0 where it has none of its own
    (process engine), or where this process may not look there (not root).
    """

    processes: int
    memory_bytes: int
    scratch_files: int = 0
    scratch_bytes: int = 0


class EngineInfo(Struct, frozen=True):
    """Name and version of the engine that answered. `notes` tell the user which limits it does not enforce.

    `runtimes`: those that an endpoint can ask for; none where jobs are plain processes. `isolation`: what isolates a
    container whose endpoint asks for no runtime. `has_egress`: it can give jobs a way out by a proxy.
    """

    name: str
    version: str
    isolated: bool
    notes: tuple[str, ...] = ()
    runtimes: tuple[EngineRuntime, ...] = ()
    isolation: str = PROCESS_ISOLATION
    has_egress: bool = False


class EngineError(Exception):
    """Root of the engine's errors; a failure of the engine, not of the job."""


class StartFailed(EngineError):
    """The container did not start, and nothing of it is left."""

    def __init__(self, code: StartFailure, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class NoSuchContainer(EngineError):
    """No container has this handle, or it is gone."""


class EngineUnavailable(EngineError):
    """The engine does not answer. Its containers may run on (Docker: live-restore)."""


class PullFailure(StrEnum):
    """Why an image did not arrive, as far as the engine's text says it."""

    LOGIN_REFUSED = "login_refused"
    NOT_FOUND = "not_found"
    DISK_FULL = "disk_full"
    REGISTRY_UNREACHABLE = "registry_unreachable"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


class PullFailed(Exception):
    """The image did not arrive. What arrived of it may be used by the next try."""

    def __init__(self, code: PullFailure, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class LocalImage(Struct, frozen=True):
    """An image that the engine has. `digest`: of the manifest at the registry; the id, if it came from none."""

    id: str
    digest: str


class RegistryLogin(Struct, frozen=True):
    """Name and password of one registry."""

    username: str
    password: str


class PullProgress(Struct, frozen=True):
    """The arrived part of an image. `total_bytes` counts the layers whose size is known so far, so it may grow.

    `percent`: the mean over all layers, in [0, 100]; a layer whose size is not known counts as 0.
    """

    done_bytes: int = 0
    total_bytes: int = 0
    percent: int = 0


class ImageStore(Protocol):
    """The images of one engine. Every call may raise EngineUnavailable."""

    async def inspect(self, reference: ImageReference) -> LocalImage | None:
        """Return the image that the engine has under this name; None if it has none."""
        ...

    def pull(self, reference: ImageReference, login: RegistryLogin | None) -> AsyncGenerator[PullProgress]:
        """Fetch the image from its registry, and yield what has arrived. Leaving it early stops the pull: `aclosing`.

        Without `login`, the engine's own configuration is used. A tag that the engine has is moved to the image that
        the registry has now. Raises PullFailed.
        """
        ...

    async def remove(self, image_id: str) -> bool:
        """Remove an image that nothing uses, with its names; return whether it is gone. False if it is in use."""
        ...

    async def free_bytes(self) -> int | None:
        """Return the free bytes where the engine keeps its images; None if this process cannot see that folder."""
        ...


class GpuAccess(Protocol):
    """GPU part of the port: give GPUs to containers, and recognize their GPU processes.

    `injection_modes` are the ways it knows, the preferred one first; empty if there is nothing to choose.
    """

    injection_modes: tuple[GpuInjection, ...]

    def set_injection(self, injection: GpuInjection) -> None:
        """Give GPUs to containers in this way from now on."""
        ...

    async def pid(self, handle: str) -> int | None:
        """Return the pid whose descendants are the container's processes; None if its cgroup identifies them."""
        ...


class LeakAccess(Protocol):
    """Leak part of the port: what a container still uses when a job in it has ended."""

    async def usage(self, handle: str) -> ContainerUsage:
        """Return what the container uses. Raises NoSuchContainer, also if it has exited."""
        ...


class ContainerEngine(GpuAccess, LeakAccess, AbstractAsyncContextManager["ContainerEngine"], Protocol):
    """Starts, follows, stops and finds containers. Every call may raise EngineUnavailable.

    `containers_outlive_runner`: a drain leaves running containers for the next runner process. Otherwise it stops them,
    because the service manager may kill them together with the runner.
    """

    name: str
    containers_outlive_runner: bool

    @property
    def images(self) -> ImageStore | None:
        """The images of the engine; None if it has none to pull (plain processes)."""
        ...

    async def __aenter__(self) -> Self: ...

    async def start(self, spec: ContainerSpec) -> str:
        """Create and start a container; return its handle. Raises StartFailed, after removing what had been created.

        A program that is missing in the image raises StartFailed, or exits with 127 if an init runs before it (Docker).
        """
        ...

    def output(self, handle: str, since: OutputCursor | None) -> AsyncGenerator[OutputChunk]:
        """Yield the output from `since` (None: from the start) until the container has exited.

        Never blocks the job, however slow the reader is. Use `aclosing` to leave early. One task after another may read
        on. Raises NoSuchContainer.
        """
        ...

    async def wait(self, handle: str) -> ContainerExit:
        """Wait for the exit. Raises NoSuchContainer, also for a container that was created and never started."""
        ...

    async def stop(self, handle: str, grace_s: float) -> None:
        """Send TERM, wait `grace_s` seconds, send KILL; return after the exit. A missing container is not an error."""
        ...

    async def remove(self, handle: str) -> None:
        """Remove the container, running or not. A missing container is not an error."""
        ...

    async def find(self, installation: str, host: str) -> list[FoundContainer]:
        """Return every container of this installation and host, in any state."""
        ...

    async def probe(self) -> EngineInfo:
        """Return what answers. Raises EngineUnavailable."""
        ...


def complete_length(data: bytes | bytearray, *, ended: bool = False) -> int:
    """Return how many bytes of `data` may be passed on, so that a reader that resumes starts at a line.

    These are the whole lines. Without a newline it is 0, or everything if the line is too long to be a message. With
    `ended`, nothing can follow, so it is everything.
    """
    if ended or (len(data) > LINE_LIMIT_BYTES and b"\n" not in data):
        return len(data)
    return data.rfind(b"\n") + 1
