"""The data folder of an `up`: its lock, its keys and its port."""

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
from lamplighter.cli.language import say
from schemas.auth import Scope
from schemas.installation import BY_UP

LOCAL_OWNER = "local"
KEYS_FILE = "keys.json"
BROKER_FILE = "broker.json"  # the broker's address and the edge's password, for `backup` while `up` runs


class LocalKeys(Struct, frozen=True):
    """The keys of this installation. Their file in the data folder is readable only by its user."""

    admin: str
    runner: str


@contextmanager
def try_lock(data: Path) -> Iterator[bool]:
    """Create the data folder if it is missing and lock it for the block. Yield False if another `up` has the lock."""
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
    """Lock the data folder for the block. Exit with code 2 if another `up` serves it, or if it cannot be used."""
    with ExitStack() as stack:
        try:
            is_locked = stack.enter_context(try_lock(data))
        except OSError as error:
            _exit_with_usage_error(
                f"the data folder {data} cannot be used ({error.strerror}): choose another with --data"
            )
        if not is_locked:
            _exit_with_usage_error(f"another `up` serves {data}: stop it, or choose another --data")
        yield


def _exit_with_usage_error(why: str) -> NoReturn:
    click.echo(f"lamplighter: {say(why)}", err=True)
    sys.exit(USAGE)


def listen_on_loopback(port: int) -> socket.socket:
    """Return a listening socket on loopback. It outlives the edge: a restart of the edge refuses no connection."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
    except OSError as error:
        _exit_with_usage_error(f"port {port} cannot be opened ({error.strerror}): choose another with --port")
    listening.listen(1024)
    return listening


def write_private_json(path: Path, value: object) -> None:
    """Write `value` as JSON atomically to a file that only this user can read."""
    secret_files.atomic_write(path, msgspec.json.encode(value))


def installation_id(data: Path) -> str:
    """Return the id that marks this installation's containers, created once: installations may share an engine."""
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
    """Return the installation's keys. Create new ones if the file is missing or the broker does not know its keys."""
    store = ApiKeyStore(bus.api_keys, utc_now, secrets.token_bytes, anyio.current_time)
    found = _read_keys(data)
    if found and await store.authenticate(found.admin) and await store.authenticate(found.runner):
        return found
    admin = await store.create(LOCAL_OWNER, (Scope.ADMIN,), name="up")
    runner = await store.create(LOCAL_OWNER, (Scope.RUNNER,), name="the runner of up")
    audit = AuditLog(bus.audit_log, utc_now, secrets.token_bytes, data / "edge")
    for new in (admin, runner):
        await audit.key_made_at_start(new.key, BY_UP)
    keys = LocalKeys(admin.text, runner.text)
    write_private_json(data / KEYS_FILE, keys)
    return keys
