"""A container that waits for its job, and how it is given one: a claim in its folder, then one line to its socket.

A container's labels cannot be changed, so whose it became is written into its folder before the line is sent. A runner
that is killed in between leaves a claim and no line: the next life sends it again. Whoever took the first line has
closed the door behind it, so a second one cannot start anything twice.
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

WARM_PREFIX = "warm-"  # of the folder's name; an owner's name comes with three dots
CLAIM_FILE = "claim.json"
START_LINE = b"start\n"
START_SOCKET_TIMEOUT_S = 5.0  # a door that exists and is not opened

_decode = msgspec.json.Decoder(ContainerIdentity).decode


class WarmContainer:
    """One of them, in the folder of that name. `settled`: it waits at its socket, or never will; `gone`: removed."""

    def __init__(self, folder: str, kind: LocalEndpoint, holding: GpuAllocation, handle: str | None = None) -> None:
        self.folder = folder
        self.endpoint = kind
        self.allocation = holding
        self.handle = handle
        self.is_ready = False
        self.is_taken = False
        self.is_unwatched = False  # nobody would see it die any more
        self.settled = anyio.Event()
        self.removed = anyio.Event()
        self.watch_scope = anyio.CancelScope()

    def stop_watching(self) -> None:
        """It has its job, or is no use any more: it need not be watched."""
        self.watch_scope.cancel()

    @property
    def is_ending(self) -> bool:
        """Whether it is no use any more."""
        return self.watch_scope.cancel_called


def write_claim(folder: Path, identity: ContainerIdentity) -> None:
    """Write down whose the container in `folder` becomes. Not synced: it outlives this process, as the container."""
    new = folder / f"{CLAIM_FILE}.new"
    new.write_bytes(msgspec.json.encode(identity))
    new.replace(folder / CLAIM_FILE)


def read_claim(folder: Path) -> ContainerIdentity | None:
    """Whose the container in `folder` became; None: nobody's."""
    try:
        return _decode((folder / CLAIM_FILE).read_bytes())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, msgspec.DecodeError):
        return None


def assign_job(folder: Path, identity: ContainerIdentity) -> bool:
    """Claim it, then send the line; whether somebody heard it. Blocking."""
    write_claim(folder, identity)
    return send_start(folder / "job")


def send_start(job_dir: Path) -> bool:
    """Send the line; False when nobody waits for it there. Blocking.

    Through a descriptor: the path may be longer than an address, and the container could make it a link elsewhere.
    """
    try:
        door = os.open(job_dir / START_SOCKET, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not stat.S_ISSOCK(os.fstat(door).st_mode):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(START_SOCKET_TIMEOUT_S)
            line.connect(f"/proc/self/fd/{door}")
            line.sendall(START_LINE)
    except OSError:
        return False
    finally:
        os.close(door)
    return True
