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

from bus import secret_files
from bus.interface import Bus
from edge.core.clock import utc_now
from edge.owners.api_keys import ApiKeyStore
from edge.owners.audit_log import AuditLog
from lamplighter.cli.context import USAGE
from schemas.auth import Scope
from schemas.installation import BY_UP

LOCAL_OWNER = "local"
KEYS_FILE = "keys.json"
BROKER_FILE = "broker.json"  # where the broker is, with the edge's rights: for `backup` while `up` runs


class LocalKeys(Struct, frozen=True):
    """The keys of this installation, in its data folder, readable by its user alone."""

    admin: str
    runner: str


@contextmanager
def try_lock(data: Path) -> Iterator[bool]:
    """Hold the data folder, made if missing, for as long as the block runs; False where an `up` holds it."""
    secret_files.make_private_folder(data, secret_files.TRAVERSE_ONLY_MODE)
    with (data / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


@contextmanager
def lock_or_exit(data: Path) -> Iterator[None]:
    """Hold the data folder; a second `up` on it ends with exit 2, and so does one that cannot have it."""
    with ExitStack() as held:
        try:
            free = held.enter_context(try_lock(data))
        except OSError as error:
            _exit_with_usage_error(
                f"the data folder {data} cannot be used ({error.strerror}): choose another with --data"
            )
        if not free:
            _exit_with_usage_error(f"another `up` serves {data}: stop it, or choose another --data")
        yield


def _exit_with_usage_error(why: str) -> NoReturn:
    click.echo(f"lamplighter: {why}", err=True)
    sys.exit(USAGE)


def listen_on_loopback(port: int) -> socket.socket:
    """A listening socket on loopback. It outlives the edge, so that a restart of the edge refuses no connection."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
    except OSError as error:
        _exit_with_usage_error(f"port {port} cannot be had ({error.strerror}): choose another with --port")
    listening.listen(1024)
    return listening


def write_private_json(path: Path, value: object) -> None:
    """`value` as JSON in a file that only this user can read, whole or not at all."""
    secret_files.atomic_write(path, msgspec.json.encode(value))


def installation_id(data: Path) -> str:
    """The name of this data folder on its containers, made once: two installations may share one engine."""
    file = data / "installation"
    if not file.exists():
        write_private_json(file, secrets.token_hex(8))
    return msgspec.json.decode(file.read_bytes(), type=str)


def _read_keys(data: Path) -> LocalKeys | None:
    try:
        return msgspec.json.decode((data / KEYS_FILE).read_bytes(), type=LocalKeys)
    except (OSError, msgspec.DecodeError):
        return None


async def ensure_keys(bus: Bus, data: Path) -> LocalKeys:
    """The installation's keys; made anew when there are none here, or the broker does not know them."""
    ring = ApiKeyStore(bus.api_keys, utc_now, secrets.token_bytes, anyio.current_time)
    kept = _read_keys(data)
    if kept and await ring.authenticate(kept.admin) and await ring.authenticate(kept.runner):
        return kept
    admin = await ring.create(LOCAL_OWNER, (Scope.ADMIN,), name="up")
    runner = await ring.create(LOCAL_OWNER, (Scope.RUNNER,), name="the runner of up")
    audit = AuditLog(bus.audit_log, utc_now, secrets.token_bytes)
    for new in (admin, runner):
        await audit.key_made_at_start(new.key, BY_UP)
    made = LocalKeys(admin.text, runner.text)
    write_private_json(data / KEYS_FILE, made)
    return made
