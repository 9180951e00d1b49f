"""A warm container, which waits for its job, and the assignment of a job: a claim in its folder, then a start line.

A container's labels cannot be changed, so the job's identity is written into its folder before the line is sent. A
runner that is killed in between leaves a claim and no line, and the next runner process sends the line again. The
container closes its socket after the first line, so a second one cannot start anything twice.
"""

import os
import socket
import stat
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from enum import StrEnum
from pathlib import Path

import anyio
import msgspec

from bus.notifier import Notifier
from bus.secret_files import atomic_write
from runner.endpoints import LocalEndpoint
from runner.engines.port import ContainerEngine, ContainerIdentity
from runner.gpu.allocator import GpuAllocation
from schemas.container_protocol import START_SOCKET, LineParser, ParsedLine

WARM_PREFIX = "warm-"  # of the folder's name; the folder name of an attempt contains three dots
CLAIM_FILE = "claim.json"
START_LINE = b"start\n"
START_SOCKET_TIMEOUT_S = 5.0  # for a start socket that exists but does not accept

_decode = msgspec.json.Decoder(ContainerIdentity).decode


class WarmState(StrEnum):
    """State of a warm container: who owns it, and whether it has loaded. The pool watches it until DETACHED."""

    LOADING = "loading"
    READY = "ready"
    RESERVED = "reserved"  # a job has it, and it still loads
    ASSIGNED = "assigned"  # a job has it, and it waits for the start line
    DETACHED = "detached"  # a job has it, and nothing watches it: it runs the job, or it died before
    REMOVING = "removing"
    REMOVED = "removed"


TRANSITIONS: Mapping[WarmState, frozenset[WarmState]] = {
    WarmState.LOADING: frozenset({WarmState.READY, WarmState.RESERVED, WarmState.REMOVING}),
    WarmState.READY: frozenset({WarmState.ASSIGNED, WarmState.REMOVING}),
    WarmState.RESERVED: frozenset({WarmState.LOADING, WarmState.ASSIGNED, WarmState.DETACHED}),
    WarmState.ASSIGNED: frozenset({WarmState.READY, WarmState.DETACHED}),
    WarmState.DETACHED: frozenset({WarmState.REMOVING}),
    WarmState.REMOVING: frozenset({WarmState.REMOVED}),
    WarmState.REMOVED: frozenset(),
}
IDLE_STATES = frozenset({WarmState.LOADING, WarmState.READY, WarmState.REMOVING})  # no job has it
STATE_AFTER_READY = {WarmState.LOADING: WarmState.READY, WarmState.RESERVED: WarmState.ASSIGNED}
STATE_WHEN_TAKEN = {WarmState.READY: WarmState.ASSIGNED, WarmState.LOADING: WarmState.RESERVED}  # ready ones first
STATE_WHEN_GIVEN_BACK = {taken: idle for idle, taken in STATE_WHEN_TAKEN.items()}


class WarmContainer:
    """One warm container, in the folder of that name.

    Created with a handle it is one that recovery found with a job: nothing watches it.
    """

    def __init__(
        self, folder: str, endpoint: LocalEndpoint, allocation: GpuAllocation, handle: str | None = None
    ) -> None:
        self.folder = folder
        self.endpoint = endpoint
        self.allocation = allocation
        self.handle = handle
        self.state = WarmState.LOADING if handle is None else WarmState.DETACHED
        self.watch_scope = anyio.CancelScope()
        self._changed = Notifier()

    def advance(self, state: WarmState) -> None:
        """Enter `state`. Raises RuntimeError if the table does not allow it."""
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"a warm container cannot go from {self.state} to {state}")
        self.state = state
        self.allocation.is_idle = state in IDLE_STATES
        self._changed.notify()

    async def wait_for(self, *states: WarmState) -> None:
        """Wait until it is in one of these states."""
        await self._changed.wait_until(lambda: self.state in states)

    def stop_watching(self) -> None:
        """Stop the task that watches it: its job starts, or it is to be removed."""
        self.watch_scope.cancel()

    async def detach(self) -> None:
        """Stop the task that watches it, and wait until that task has ended."""
        self.stop_watching()
        await self.wait_for(WarmState.DETACHED)


def write_claim(folder: Path, identity: ContainerIdentity) -> None:
    """Write the identity of the job to which the container in `folder` is assigned.

    Not synced: the file has to outlive this process only, as the container does.
    """
    atomic_write(folder / CLAIM_FILE, msgspec.json.encode(identity), sync=False)


def read_claim(folder: Path) -> ContainerIdentity | None:
    """Return the identity of the job to which the container in `folder` was assigned; None without a claim."""
    try:
        return _decode((folder / CLAIM_FILE).read_bytes())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, msgspec.DecodeError):
        return None


def assign_job(folder: Path, identity: ContainerIdentity) -> bool:
    """Write the claim, then send the start line; return whether the container accepted it. Blocking."""
    write_claim(folder, identity)
    return send_start(folder / "job")


def send_start(job_dir: Path) -> bool:
    """Send the start line; return False if nothing accepts it there. Blocking.

    The socket is opened through a descriptor: the path may be too long for an address, and the container could replace
    it with a link.
    """
    try:
        socket_fd = os.open(job_dir / START_SOCKET, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
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


async def parsed_lines(engine: ContainerEngine, handle: str) -> AsyncGenerator[ParsedLine]:
    """Yield the parsed output of a container from its start to its exit. Raises EngineError."""
    parsers = {"stdout": LineParser("stdout"), "stderr": LineParser("stderr")}
    async with aclosing(engine.output(handle, None)) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            for parsed in parsers[chunk.stream].feed(chunk.data, chunk.cursor.offset - len(chunk.data)):
                yield parsed
