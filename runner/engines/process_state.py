"""State folder of a job under the process engine: its spec, its processes, its output, its exit. All calls block.

The shim writes running.json, stdout, stderr and exit.json.
"""

import os
import signal
from contextlib import suppress
from datetime import UTC, datetime
from os import kill, killpg
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from runner.engines.job_user import JobUser
from runner.engines.port import ContainerExit, ContainerIdentity, ContainerState, FoundContainer, NoSuchContainer
from runner.engines.process_shim import boot_id, started_at
from schemas.container_protocol import LINE_LIMIT_BYTES, OutputStream

T = TypeVar("T")
PidAndStart = tuple[int, int]  # pid and start time, in the boot that the record names

READ_BYTES = 4 * LINE_LIMIT_BYTES
STREAMS: tuple[OutputStream, OutputStream] = ("stdout", "stderr")
EXIT_KILLED = 137


class ProcessSpec(Struct, frozen=True):
    """spec.json: the program for the shim. `user` runs it; None is the runner's own user.

    `places` are the folders that this user has to reach, each with whether it may write there. `sandbox`: bubblewrap
    and its options; empty: none.
    """

    identity: ContainerIdentity
    command: tuple[str, ...]
    folder: str
    env: dict[str, str]
    memory_mb: int
    user: JobUser | None = None
    places: tuple[tuple[str, bool], ...] = ()
    sandbox: tuple[str, ...] = ()


class ProcessPids(Struct, frozen=True):
    """running.json: the processes of the shim and of the job. In a sandbox, the job's is pid 1 of the sandbox."""

    boot: str
    shim: PidAndStart
    job: PidAndStart
    is_sandboxed: bool = False

    def is_alive(self, process: PidAndStart) -> bool:
        """Return whether this very process runs: not gone, not a zombie, and not another one with the same pid."""
        return process[1] != 0 and self.boot == boot_id() and started_at(process[0]) == process[1]

    def terminate(self) -> None:
        """Send SIGTERM to the job's process group."""
        if self.is_alive(self.job):
            _signal_group(self.job[0], signal.SIGTERM)

    def kill(self) -> None:
        """Kill the job. The shim kills all descendants; without a shim, only the job's process group can be found."""
        if self.is_alive(self.shim):
            with suppress(ProcessLookupError):
                kill(self.shim[0], signal.SIGTERM)
        elif self.is_alive(self.job):
            _signal_group(self.job[0], signal.SIGKILL)


class ExitRecord(Struct, frozen=True):
    """exit.json: how the job exited; times in seconds since 1970."""

    code: int
    oom_killed: bool
    started: float
    finished: float


class StreamPart(NamedTuple):
    """Some bytes of a stream, and their offset: the shim may have discarded older ones."""

    start: int
    data: bytes


class OutputSnapshot(NamedTuple):
    """Output and exit. `exit` was read before the output: if it is set, the output is complete."""

    exit: ContainerExit | None
    output: tuple[StreamPart, StreamPart]


class ProcessStateDir:
    """The state folder of one job, read and written by the engine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write_spec(self, spec: ProcessSpec) -> None:
        """Write spec.json, from which the shim starts the job."""
        (self.folder / "spec.json").write_bytes(msgspec.json.encode(spec))

    def read_pids(self) -> ProcessPids:
        """Return the processes. Raises NoSuchContainer."""
        found = self._load("running.json", ProcessPids)
        if found is None:
            raise NoSuchContainer(f"{self.folder.name} does not exist or was never started")
        return found

    def read_exit(self) -> ContainerExit | None:
        """Return how the job exited, or None while it runs. Raises NoSuchContainer.

        Without exit.json the job counts as killed: the shim was killed before it could write the file.
        """
        running = self.read_pids()
        alive = running.is_alive(running.shim) or running.is_alive(running.job)
        record = self._load("exit.json", ExitRecord)  # after the check of the processes: the shim writes it, then exits
        if record is None:
            return None if alive else ContainerExit(EXIT_KILLED)
        return ContainerExit(
            record.code, record.oom_killed, _to_datetime(record.started), _to_datetime(record.finished)
        )

    def read_output(self, at: tuple[int, int]) -> OutputSnapshot:
        """Return up to READ_BYTES of each stream from the offsets `at`. Raises NoSuchContainer."""
        exit_ = self.read_exit()
        return OutputSnapshot(exit_, (self._read("stdout", at[0]), self._read("stderr", at[1])))

    def describe(self) -> FoundContainer | None:
        """Return the job as `find` shows it; None while it is being created or removed."""
        spec = self._load("spec.json", ProcessSpec)
        if spec is None:
            return None
        try:
            state: ContainerState = "running" if self.read_exit() is None else "exited"
        except NoSuchContainer:
            state = "created"
        return FoundContainer(self.folder.name, spec.identity, state)

    def _read(self, stream: OutputStream, at: int) -> StreamPart:
        with (self.folder / stream).open("rb") as file:
            with suppress(OSError):  # no data follows, or the file system has no holes
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            file.seek(at)
            return StreamPart(at, file.read(READ_BYTES))

    def _load(self, name: str, kind: type[T]) -> T | None:
        try:
            return msgspec.json.decode((self.folder / name).read_bytes(), type=kind)
        except (OSError, msgspec.MsgspecError):
            return None


def _signal_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        killpg(pid, number)


def _to_datetime(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
