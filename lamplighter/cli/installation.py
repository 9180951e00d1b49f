"""What belongs to one data folder of `up`: its lock, its keys, its address."""

import fcntl
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

import anyio
import click
import msgspec
from msgspec import Struct

from bus import private
from bus.port import Bus
from edge.services.audit import Audit
from edge.services.clock import utc_now
from edge.services.keys import Keys
from lamplighter.cli.session import USAGE
from schemas.access import Scope
from schemas.audit import BY_UP

OWNER = "local"
KEYS_FILE = "keys.json"
BROKER_FILE = "broker.json"  # where the broker is, with the edge's rights: for `backup` while `up` runs


class Keyring(Struct, frozen=True):
    """The keys of this installation, in its data folder, readable by its user alone."""

    admin: str
    runner: str


@contextmanager
def alone(data: Path) -> Iterator[bool]:
    """Hold the data folder, made if missing, for as long as the block runs; False where an `up` holds it."""
    private.private_folder(data, private.PASSAGE)
    with (data / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


@contextmanager
def sole(data: Path) -> Iterator[None]:
    """Hold the data folder; a second `up` on it ends with exit 2, and so does one that cannot have it."""
    with ExitStack() as held:
        try:
            free = held.enter_context(alone(data))
        except OSError as error:
            _refuse(f"the data folder {data} cannot be used ({error.strerror}): choose another with --data")
        if not free:
            _refuse(f"another `up` serves {data}: stop it, or choose another --data")
        yield


def _refuse(why: str) -> NoReturn:
    click.echo(f"lamplighter: {why}", err=True)
    sys.exit(USAGE)


def listen(port: int) -> socket.socket:
    """A listening socket on loopback. It outlives the edge, so that a restart of the edge refuses no connection."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
    except OSError as error:
        _refuse(f"port {port} cannot be had ({error.strerror}): choose another with --port")
    listening.listen(1024)
    return listening


def write_private(path: Path, value: object) -> None:
    """`value` as JSON in a file that only this user can read, whole or not at all."""
    private.write_private(path, msgspec.json.encode(value))


def installation_id(data: Path) -> str:
    """The name of this data folder on its containers, made once: two installations may share one engine."""
    file = data / "installation"
    if not file.exists():
        write_private(file, secrets.token_hex(8))
    return msgspec.json.decode(file.read_bytes(), type=str)


def _kept(data: Path) -> Keyring | None:
    try:
        return msgspec.json.decode((data / KEYS_FILE).read_bytes(), type=Keyring)
    except (OSError, msgspec.DecodeError):
        return None


async def ensure_keys(bus: Bus, data: Path) -> Keyring:
    """The installation's keys; made anew when there are none here, or the broker does not know them."""
    ring = Keys(bus.keys, utc_now, secrets.token_bytes, anyio.current_time)
    kept = _kept(data)
    if kept and await ring.authenticate(kept.admin) and await ring.authenticate(kept.runner):
        return kept
    admin = await ring.create(OWNER, (Scope.ADMIN,), name="up")
    runner = await ring.create(OWNER, (Scope.RUNNER,), name="the runner of up")
    audit = Audit(bus.audit, utc_now, secrets.token_bytes)
    for new in (admin, runner):
        await audit.key_made_at_start(new.key, BY_UP)
    made = Keyring(admin.text, runner.text)
    write_private(data / KEYS_FILE, made)
    return made
