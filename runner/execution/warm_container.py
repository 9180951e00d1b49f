"""A warm container: it waits for its job, gets one by a file in its folder and a start line, and is checked after it.

A container's labels cannot be changed, so the job's identity is written into its folder before the line is sent. A
runner that is killed in between leaves the file and no line, and the next runner process sends the line again. The
container closes its socket after the first line, so a second one cannot start anything twice.

A reused container (`[reuse]` of its endpoint) runs one job after another, numbered from 1. Each has a socket and a
folder of its own: job 2 is started at start-2.sock and runs in 2/. Its output begins at the cursor `since`. After the
job, the pool keeps the container (`keep`) and watches it again: it is LOADING until it is ready for the next job.

What a job leaves in a reused container is measured before the first job and after each one: processes, files outside
its own folder, memory. A container in which something was left runs no other job. Memory, and files in /tmp and
/dev/shm, may stay from the first job: libraries keep caches there. If the next job may be of another owner, these
files may not stay either.
"""

import os
import socket
import stat
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.to_thread
import msgspec

from bus.notifier import Notifier
from bus.secret_files import atomic_write
from runner.endpoints import LocalEndpoint
from runner.engines.launch import prepare_inner_job_dir
from runner.engines.port import MIB, ContainerEngine, ContainerIdentity, ContainerUsage, OutputChunk, OutputCursor
from runner.execution.output_filters import SecretRedactor
from runner.gpu.allocator import GpuAllocation
from schemas.container_protocol import LineParser, OutputStream, ParsedLine, start_socket

WARM_PREFIX = "warm-"  # of the folder's name; the folder name of an attempt contains three dots
ASSIGNMENT_FILE = "claim.json"
START_LINE = b"start\n"
START_SOCKET_TIMEOUT_S = 5.0  # for a start socket that exists but does not accept


class WarmAssignment(ContainerIdentity, frozen=True, kw_only=True):
    """ASSIGNMENT_FILE: the job that a warm container was assigned to.

    `number` and `since` are the number of the job and where its output begins, in a reused container.
    """

    number: int = 0
    since: OutputCursor | None = None

    @property
    def identity(self) -> ContainerIdentity:
        """Return the identity of the job's container."""
        return ContainerIdentity(**{name: getattr(self, name) for name in ContainerIdentity.__struct_fields__})


_decode_assignment = msgspec.json.Decoder(WarmAssignment).decode


class JobFolders(NamedTuple):
    """The folders of one job: `container` is removed with the container, `run` has checkpoint and log.

    `root` is what the container sees as /job, and `job` is the job's own folder there.
    """

    container: Path
    run: Path
    root: Path
    job: Path


def job_folders(container: Path, number: int) -> JobFolders:
    """Return the folders of the job of this number; 0: the one job of a container."""
    root = container / "job"
    if not number:
        return JobFolders(container, container, root, root)
    return JobFolders(container, container / f"run-{number}", root, root / str(number))


class WarmState(StrEnum):
    """State of a warm container: who owns it, and whether it has loaded. The pool watches it until DETACHED."""

    LOADING = "loading"
    READY = "ready"
    RESERVED = "reserved"  # a job has it, and it still loads
    ASSIGNED = "assigned"  # a job has it, and it waits for the start line
    DETACHED = "detached"  # a job has it, and nothing watches it: it runs the job, or it died before
    REMOVING = "removing"
    REMOVED = "removed"


WARM_TRANSITIONS: Mapping[WarmState, frozenset[WarmState]] = {
    WarmState.LOADING: frozenset({WarmState.READY, WarmState.RESERVED, WarmState.REMOVING}),
    WarmState.READY: frozenset({WarmState.ASSIGNED, WarmState.REMOVING}),
    WarmState.RESERVED: frozenset({WarmState.LOADING, WarmState.ASSIGNED, WarmState.DETACHED}),
    WarmState.ASSIGNED: frozenset({WarmState.READY, WarmState.DETACHED}),
    WarmState.DETACHED: frozenset({WarmState.REMOVING, WarmState.LOADING}),  # loading: it is kept for the next job
    WarmState.REMOVING: frozenset({WarmState.REMOVED}),
    WarmState.REMOVED: frozenset(),
}
IDLE_STATES = frozenset({WarmState.LOADING, WarmState.READY, WarmState.REMOVING})  # no job has it
STATES_WITHOUT_START = frozenset(WarmState) - {WarmState.RESERVED, WarmState.ASSIGNED}  # no job waits to start in it
STATE_AFTER_READY = {WarmState.LOADING: WarmState.READY, WarmState.RESERVED: WarmState.ASSIGNED}
STATE_WHEN_TAKEN = {WarmState.READY: WarmState.ASSIGNED, WarmState.LOADING: WarmState.RESERVED}  # ready ones first
STATE_WHEN_GIVEN_BACK = {taken: idle for idle, taken in STATE_WHEN_TAKEN.items()}


class ContainerBaseline(NamedTuple):
    """State of a reused container before its first job: its usage, and the files outside the folders of jobs."""

    usage: ContainerUsage
    files: frozenset[str]


class OutputRest(NamedTuple):
    """The output of a reused container after the end of a job, with the stream that was open: opening one takes long.

    `cursor` is where `chunks` go on. `ready` has the number of the job for which each stream said that it is ready.
    """

    chunks: AsyncGenerator[OutputChunk]
    cursor: OutputCursor
    ready: Mapping[OutputStream, int]


class WarmContainer:
    """One warm container, in the folder of that name.

    Created with a handle it is one that recovery found with a job: nothing watches it.

    In a reused container, `number` is the number of its job, or of the one that it waits for, and `since` is where the
    output of that job begins. `owner` is whose jobs it ran. `reuse` is how its pool takes it back after a job.
    `expires_at`, in seconds of the event loop's clock, and `baseline` are set when it is ready for the first time,
    `first_usage` after its first job.
    """

    def __init__(  # noqa: PLR0913 - each is a fact that recovery knows
        self,
        folder: str,
        endpoint: LocalEndpoint,
        allocation: GpuAllocation,
        handle: str | None = None,
        *,
        number: int = 0,
        since: OutputCursor | None = None,
    ) -> None:
        self.folder = folder
        self.endpoint = endpoint
        self.allocation = allocation
        self.handle = handle
        self.state = WarmState.LOADING if handle is None else WarmState.DETACHED
        self.number = number
        self.since = since
        self.owner = ""
        self.reuse: ContainerReuse | None = None
        self.rest: OutputRest | None = None
        # Set when the end of the job before is recorded. Until then the container is the only proof of how that job
        # ended: no other job starts in it, and it is not removed.
        self.is_vacated = anyio.Event()
        self.is_vacated.set()
        self._take_files: Callable[[], None] | None = None
        self._take_lock = threading.Lock()
        self.expires_at = float("inf")
        self.baseline: ContainerBaseline | None = None
        self.first_usage: ContainerUsage | None = None
        self.watch_scope = anyio.CancelScope()
        self.redactor = SecretRedactor()  # of the secrets of its last job, which it may print afterwards
        self._changed = Notifier()

    def advance(self, state: WarmState) -> None:
        """Enter `state`. Raises RuntimeError if the table does not allow it."""
        if state not in WARM_TRANSITIONS[self.state]:
            raise RuntimeError(f"a warm container cannot go from {self.state} to {state}")
        self.state = state
        self.allocation.is_idle = state in IDLE_STATES
        self._changed.notify()

    async def wait_for(self, *states: WarmState) -> None:
        """Wait until it is in one of these states."""
        await self._changed.wait_until(lambda: self.state in states)

    def wait_for_next_job(self, rest: OutputRest) -> None:
        """Enter LOADING after a job: it is ready again when it says so in the `rest` of its output."""
        self.number += 1
        self.since, self.rest = None, rest
        self.is_vacated = anyio.Event()
        self.watch_scope = anyio.CancelScope()
        self.advance(WarmState.LOADING)

    def vacate(self, take_files: Callable[[], None]) -> None:
        """Note that the end of its last job is recorded. `take_files` is for `take_files_back`, and blocks."""
        self._take_files = take_files
        self.is_vacated.set()

    def take_files_back(self) -> None:
        """Take the files of the last job from the container before its next job starts, unless that was done. Blocking.

        A second call waits for the first: it would remove the secrets of the next job. Raises OSError.
        """
        with self._take_lock:
            if self._take_files is not None:
                self._take_files()
                self._take_files = None

    def stop_watching(self) -> None:
        """Stop the task that watches it: its job starts, or it is to be removed."""
        self.watch_scope.cancel()

    async def detach(self) -> None:
        """Stop the task that watches it, and wait until that task has ended."""
        self.stop_watching()
        await self.wait_for(WarmState.DETACHED)


class ContainerReuse(NamedTuple):
    """Two calls of the pool for a container whose job has ended.

    `find_leak` returns why the job does not allow another one in it; None if it does. `keep` takes the container back,
    with that reason and the rest of its output; it returns False if the container has to go.
    """

    find_leak: Callable[[WarmContainer], Awaitable[str | None]]
    keep: Callable[[WarmContainer, OutputRest, str | None], Awaitable[bool]]


def write_warm_assignment(
    folder: Path, identity: ContainerIdentity, number: int = 0, since: OutputCursor | None = None
) -> None:
    """Write the identity of the job to which the container in `folder` is assigned.

    Not synced: the file has to outlive this process only, as the container does.
    """
    assignment = WarmAssignment(**msgspec.structs.asdict(identity), number=number, since=since)
    atomic_write(folder / ASSIGNMENT_FILE, msgspec.json.encode(assignment), sync=False)


def read_warm_assignment(folder: Path) -> WarmAssignment | None:
    """Return the assignment of the container in `folder`; None if no job was assigned to it."""
    try:
        return _decode_assignment((folder / ASSIGNMENT_FILE).read_bytes())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, msgspec.DecodeError):
        return None


def assign_job(folder: Path, identity: ContainerIdentity, number: int = 0, since: OutputCursor | None = None) -> bool:
    """Write the assignment, then send the start line; return whether the container accepted it. Blocking."""
    write_warm_assignment(folder, identity, number, since)
    folders = job_folders(folder, number)
    if number:
        prepare_inner_job_dir(folders.job)
    return send_start(folders.root, number)


def send_start(root: Path, number: int = 0) -> bool:
    """Send the start line; return False if nothing accepts it there. Blocking.

    The socket is opened through a descriptor: the path may be too long for an address, and the container could replace
    it with a link.
    """
    try:
        socket_fd = os.open(root / start_socket(number), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not stat.S_ISSOCK(os.fstat(socket_fd).st_mode):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(START_SOCKET_TIMEOUT_S)
            connection.connect(f"/proc/self/fd/{socket_fd}")
            connection.sendall(START_LINE)
    except OSError:
        return False
    finally:
        os.close(socket_fd)
    return True


async def parsed_lines(chunks: AsyncGenerator[OutputChunk]) -> AsyncGenerator[tuple[ParsedLine, OutputCursor]]:
    """Yield the parsed output of a container until its exit, each line with the cursor after its chunk.

    Raises EngineError.
    """
    parsers = {"stdout": LineParser("stdout"), "stderr": LineParser("stderr")}
    async with aclosing(chunks):
        async for chunk in chunks:
            for parsed in parsers[chunk.stream].feed(chunk.data, chunk.cursor.offset - len(chunk.data)):
                yield parsed, chunk.cursor


LEAK_MEMORY_SHARE = 0.25  # of the endpoint's memory_mb, by which memory may grow after the first job


async def measure_baseline(engine: ContainerEngine, handle: str, root: Path) -> ContainerBaseline:
    """Measure a container that has loaded and has run no job. Raises EngineError, OSError."""
    return ContainerBaseline(await engine.usage(handle), await anyio.to_thread.run_sync(_list_files, root))


async def find_leak_in_use(engine: ContainerEngine, warm: WarmContainer) -> str | None:
    """Return what the last job left in processes, memory and scratch files; None if nothing. Raises EngineError."""
    if warm.baseline is None or warm.handle is None:
        return "it was not measured before its first job"
    usage, before = await engine.usage(warm.handle), warm.baseline.usage
    if warm.first_usage is None:
        warm.first_usage = usage
    first = warm.first_usage
    grown = usage.memory_bytes + usage.scratch_bytes - first.memory_bytes - first.scratch_bytes
    reuse = warm.endpoint.config.reuse
    allowed = (before if reuse is not None and reuse.scope == "endpoint" else first).scratch_files
    if usage.processes > before.processes:
        return f"a job left processes: {usage.processes}, before the first job {before.processes}"
    if usage.scratch_files > allowed:
        return f"a job left files in /tmp or /dev/shm: {usage.scratch_files - allowed} more than allowed"
    if grown > LEAK_MEMORY_SHARE * warm.endpoint.config.resources.memory_mb * MIB:
        return f"its memory has grown by {grown // MIB} MiB since its first job"
    return None


def find_leaked_file(warm: WarmContainer, root: Path) -> str | None:
    """Return a file that the last job left outside its folder, None without one. Blocking. Raises OSError."""
    left = _list_files(root) - (warm.baseline.files if warm.baseline else frozenset())
    return f"a job left files outside its folder, such as {min(left)!r}" if left else None


def _list_files(root: Path) -> frozenset[str]:
    """Return what is in the folder that the container sees as /job, without the folders of jobs and the sockets."""
    found: set[str] = set()
    for entry in os.scandir(root):
        if entry.name in {"in", "out", "tmp"} and entry.is_dir(follow_symlinks=False):
            found |= {f"{entry.name}/{inner.name}" for inner in os.scandir(entry)}
        elif not entry.name.isdigit() and not entry.name.endswith(".sock"):
            found.add(entry.name)
    return frozenset(found)
