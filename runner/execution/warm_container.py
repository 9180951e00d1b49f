"""A warm container, which waits for its job, and the assignment of a job: a claim in its folder, then a start line.

A container's labels cannot be changed, so the job's identity is written into its folder before the line is sent. A
runner that is killed in between leaves a claim and no line, and the next runner process sends the line again. The
container closes its socket after the first line, so a second one cannot start anything twice.
"""

import os
import socket
import stat
from pathlib import Path

import anyio
import msgspec

from runner.endpoints import LocalEndpoint
from runner.engines.port import ContainerIdentity
from runner.gpu.allocator import GpuAllocation
from schemas.container_protocol import START_SOCKET

WARM_PREFIX = "warm-"  # of the folder's name; the folder name of an attempt contains three dots
CLAIM_FILE = "claim.json"
START_LINE = b"start\n"
START_SOCKET_TIMEOUT_S = 5.0  # for a start socket that exists but does not accept

_decode = msgspec.json.Decoder(ContainerIdentity).decode


class WarmContainer:
    """One warm container, in the folder of that name. `settled`: it waits at its socket, or never will; `removed`:
    gone.
    """

    def __init__(
        self, folder: str, endpoint: LocalEndpoint, allocation: GpuAllocation, handle: str | None = None
    ) -> None:
        self.folder = folder
        self.endpoint = endpoint
        self.allocation = allocation
        self.handle = handle
        self.is_ready = False
        self.is_taken = False
        self.is_unwatched = False  # its death would not be seen any more
        self.settled = anyio.Event()
        self.removed = anyio.Event()
        self.watch_scope = anyio.CancelScope()

    def stop_watching(self) -> None:
        """Stop watching the container: it has its job, or is of no more use."""
        self.watch_scope.cancel()

    @property
    def is_ending(self) -> bool:
        """Return whether the container is of no more use."""
        return self.watch_scope.cancel_called


def write_claim(folder: Path, identity: ContainerIdentity) -> None:
    """Write the identity of the job to which the container in `folder` is assigned.

    Not synced: the file has to outlive this process only, as the container does.
    """
    temporary = folder / f"{CLAIM_FILE}.new"
    temporary.write_bytes(msgspec.json.encode(identity))
    temporary.replace(folder / CLAIM_FILE)


def read_claim(folder: Path) -> ContainerIdentity | None:
    """Return the identity of the job to which the container in `folder` was assigned; None if there is none."""
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
