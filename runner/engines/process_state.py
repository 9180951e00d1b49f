"""A job's state folder under the process engine: what was to run, its processes, what they said, how it ended.

The shim writes running.json, stdout, stderr and exit.json. All calls here block.
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
    """spec.json: what the shim runs, and for whom. `user`: whom it becomes for that, None for the runner's own.

    `places` are the folders that this user has to reach, and whether it may write there.
    """

    identity: ContainerIdentity
    command: tuple[str, ...]
    folder: str
    env: dict[str, str]
    memory_mb: int
    user: JobUser | None = None
    places: tuple[tuple[str, bool], ...] = ()


class ProcessPids(Struct, frozen=True):
    """running.json."""

    boot: str
    shim: PidAndStart
    job: PidAndStart

    def is_alive(self, process: PidAndStart) -> bool:
        """Whether the very process still runs: neither gone, nor a zombie, nor another one with its pid."""
        return self.boot == boot_id() and started_at(process[0]) == process[1]

    def terminate(self) -> None:
        """Ask the job and those of its group to end."""
        if self.is_alive(self.job):
            _signal_group(self.job[0], signal.SIGTERM)

    def kill(self) -> None:
        """End it. The shim kills the whole family; without it the job's own group is all that can be found."""
        if self.is_alive(self.shim):
            with suppress(ProcessLookupError):
                kill(self.shim[0], signal.SIGTERM)
        elif self.is_alive(self.job):
            _signal_group(self.job[0], signal.SIGKILL)


class ExitRecord(Struct, frozen=True):
    """exit.json; times in seconds since 1970."""

    code: int
    oom_killed: bool
    started: float
    finished: float


class StreamPart(NamedTuple):
    """Some bytes of a stream, and the offset that they begin at: the shim may have given up what was before."""

    start: int
    data: bytes


class OutputSnapshot(NamedTuple):
    """`exit` was looked for before the output was read: with it, the output is all there is."""

    exit: ContainerExit | None
    output: tuple[StreamPart, StreamPart]


class ProcessStateDir:
    """The state folder of one job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write_spec(self, kept: ProcessSpec) -> None:
        """Write spec.json."""
        (self.folder / "spec.json").write_bytes(msgspec.json.encode(kept))

    def read_pids(self) -> ProcessPids:
        """Its processes. Raises NoSuchContainer."""
        found = self._load("running.json", ProcessPids)
        if found is None:
            raise NoSuchContainer(f"{self.folder.name} is not here or was never started")
        return found

    def read_exit(self) -> ContainerExit | None:
        """How it ended, or None while it runs; killed, if the shim was. Raises NoSuchContainer."""
        running = self.read_pids()
        alive = running.is_alive(running.shim) or running.is_alive(running.job)
        ended = self._load("exit.json", ExitRecord)  # after the look at the processes: the shim writes it and then goes
        if ended is None:
            return None if alive else ContainerExit(EXIT_KILLED)
        return ContainerExit(ended.code, ended.oom_killed, _to_datetime(ended.started), _to_datetime(ended.finished))

    def read_output(self, at: tuple[int, int]) -> OutputSnapshot:
        """Up to READ bytes of each stream from the offsets `at`. Raises NoSuchContainer."""
        ended = self.read_exit()
        return OutputSnapshot(ended, (self._read("stdout", at[0]), self._read("stderr", at[1])))

    def describe(self) -> FoundContainer | None:
        """It as `find` shows it; None while it is just being made or removed."""
        kept = self._load("spec.json", ProcessSpec)
        if kept is None:
            return None
        try:
            state: ContainerState = "running" if self.read_exit() is None else "exited"
        except NoSuchContainer:
            state = "created"
        return FoundContainer(self.folder.name, kept.identity, state)

    def _read(self, stream: OutputStream, at: int) -> StreamPart:
        with (self.folder / stream).open("rb") as file:
            with suppress(OSError):  # nothing follows, or the file system knows no holes
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
