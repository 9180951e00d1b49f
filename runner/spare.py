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

from runner.cards import Holding
from runner.catalogue import Kind
from runner.engines.port import Identity
from schemas.container import START_SOCKET

PREFIX = "warm-"  # of the folder's name; an owner's name comes with three dots
CLAIM = "claim.json"
LINE = b"start\n"
PATIENCE_S = 5.0  # a door that exists and is not opened

_decode = msgspec.json.Decoder(Identity).decode


class Spare:
    """One of them, in the folder of that name. `settled`: it waits at its socket, or never will; `gone`: removed."""

    def __init__(self, folder: str, kind: Kind, holding: Holding, handle: str | None = None) -> None:
        self.folder = folder
        self.kind = kind
        self.holding = holding
        self.handle = handle
        self.ready = False
        self.taken = False
        self.unwatched = False  # nobody would see it die any more
        self.settled = anyio.Event()
        self.gone = anyio.Event()
        self.watched = anyio.CancelScope()

    def over(self) -> None:
        """It has its job, or is no use any more: it need not be watched."""
        self.watched.cancel()

    @property
    def going(self) -> bool:
        """Whether it is no use any more."""
        return self.watched.cancel_called


def claim(folder: Path, identity: Identity) -> None:
    """Write down whose the container in `folder` becomes. Not synced: it outlives this process, as the container."""
    new = folder / f"{CLAIM}.new"
    new.write_bytes(msgspec.json.encode(identity))
    new.replace(folder / CLAIM)


def became(folder: Path) -> Identity | None:
    """Whose the container in `folder` became; None: nobody's."""
    try:
        return _decode((folder / CLAIM).read_bytes())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, msgspec.DecodeError):
        return None


def give(folder: Path, identity: Identity) -> bool:
    """Claim it, then send the line; whether somebody heard it. Blocking."""
    claim(folder, identity)
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
            line.settimeout(PATIENCE_S)
            line.connect(f"/proc/self/fd/{door}")
            line.sendall(LINE)
    except OSError:
        return False
    finally:
        os.close(door)
    return True
