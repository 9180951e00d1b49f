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

from runner.engines.jobuser import JobUser
from runner.engines.port import Exit, Found, Identity, NoSuchContainer, State
from runner.engines.shim import boot, started_at
from schemas.container import MAX_LINE, Stream

T = TypeVar("T")
Process = tuple[int, int]  # pid and start time, in the boot that the record names

READ = 4 * MAX_LINE
STREAMS: tuple[Stream, Stream] = ("stdout", "stderr")
KILLED = 137


class Kept(Struct, frozen=True):
    """spec.json: what the shim runs, and for whom. `user`: whom it becomes for that, None for the runner's own.

    `places` are the folders that this user has to reach, and whether it may write there.
    """

    identity: Identity
    command: tuple[str, ...]
    folder: str
    env: dict[str, str]
    memory_mb: int
    user: JobUser | None = None
    places: tuple[tuple[str, bool], ...] = ()


class Running(Struct, frozen=True):
    """running.json."""

    boot: str
    shim: Process
    job: Process

    def alive(self, process: Process) -> bool:
        """Whether the very process still runs: neither gone, nor a zombie, nor another one with its pid."""
        return self.boot == boot() and started_at(process[0]) == process[1]

    def terminate(self) -> None:
        """Ask the job and those of its group to end."""
        if self.alive(self.job):
            _signal_group(self.job[0], signal.SIGTERM)

    def kill(self) -> None:
        """End it. The shim kills the whole family; without it the job's own group is all that can be found."""
        if self.alive(self.shim):
            with suppress(ProcessLookupError):
                kill(self.shim[0], signal.SIGTERM)
        elif self.alive(self.job):
            _signal_group(self.job[0], signal.SIGKILL)


class Ended(Struct, frozen=True):
    """exit.json; times in seconds since 1970."""

    code: int
    oom_killed: bool
    started: float
    finished: float


class Part(NamedTuple):
    """Some bytes of a stream, and the offset that they begin at: the shim may have given up what was before."""

    start: int
    data: bytes


class Look(NamedTuple):
    """`exit` was looked for before the output was read: with it, the output is all there is."""

    exit: Exit | None
    output: tuple[Part, Part]


class Records:
    """The state folder of one job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, kept: Kept) -> None:
        """Write spec.json."""
        (self.folder / "spec.json").write_bytes(msgspec.json.encode(kept))

    def running(self) -> Running:
        """Its processes. Raises NoSuchContainer."""
        found = self._load("running.json", Running)
        if found is None:
            raise NoSuchContainer(f"{self.folder.name} is not here or was never started")
        return found

    def ended(self) -> Exit | None:
        """How it ended, or None while it runs; killed, if the shim was. Raises NoSuchContainer."""
        running = self.running()
        alive = running.alive(running.shim) or running.alive(running.job)
        ended = self._load("exit.json", Ended)  # after the look at the processes: the shim writes it and then goes
        if ended is None:
            return None if alive else Exit(KILLED)
        return Exit(ended.code, ended.oom_killed, _time(ended.started), _time(ended.finished))

    def look(self, at: tuple[int, int]) -> Look:
        """Up to READ bytes of each stream from the offsets `at`. Raises NoSuchContainer."""
        ended = self.ended()
        return Look(ended, (self._read("stdout", at[0]), self._read("stderr", at[1])))

    def found(self) -> Found | None:
        """It as `find` shows it; None while it is just being made or removed."""
        kept = self._load("spec.json", Kept)
        if kept is None:
            return None
        try:
            state: State = "running" if self.ended() is None else "exited"
        except NoSuchContainer:
            state = "created"
        return Found(self.folder.name, kept.identity, state)

    def _read(self, stream: Stream, at: int) -> Part:
        with (self.folder / stream).open("rb") as file:
            with suppress(OSError):  # nothing follows, or the file system knows no holes
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            file.seek(at)
            return Part(at, file.read(READ))

    def _load(self, name: str, kind: type[T]) -> T | None:
        try:
            return msgspec.json.decode((self.folder / name).read_bytes(), type=kind)
        except (OSError, msgspec.MsgspecError):
            return None


def _signal_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        killpg(pid, number)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
