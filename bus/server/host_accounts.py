"""The accounts of enrolled hosts at the broker: write `hosts.conf` beside nats.conf, and make the broker read it.

nats.conf includes the file among its accounts. In a cluster every server needs it, so there the reload command has to
copy it to each server first.

To find out which list a server has read, each list has one more account, named after its content, and the edge logs in
with it. An account that a reload adds cannot call anything before the next reload (nats-server 2.15.1: its imports are
dead). So that login also has to make a call, and the server is reloaded again until the call is answered. Then all
accounts of the list work.
"""

import hmac
import math
import os
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path

import anyio
import bcrypt
from msgspec.structs import replace

from bus.interface import BrokerDenied, BrokerUnreachable, BusError
from bus.nats.connection import can_log_in
from bus.nats.users import account_list_marker, runner_user
from bus.secret_files import atomic_write
from bus.server.config import render_account
from bus.server.process import HOSTS_FILE
from bus.settings import BrokerSettings
from schemas.environment import build_child_environment

RELOAD_TIMEOUT_S = 20.0
APPLY_TIMEOUT_S = 10.0
APPLY_CHECK_INTERVAL_S = 0.05
RELOAD_INTERVAL_S = 2.0  # a reload with 200 connected hosts takes half a second
# The lowest cost, 1 ms: a password of 256 random bits cannot be guessed, however fast the hash is. A reload compares
# the password of every connection again, one after the other.
BCRYPT_COST = 4


class BrokerReloadFailed(BusError):
    """The broker did not read the list. The message says what failed and what to do."""


def new_password() -> str:
    """Return 256 random bits as text."""
    return secrets.token_urlsafe(32)


def hash_password(password: str) -> str:
    """Return the hash of the password that the broker checks and that is stored."""
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(BCRYPT_COST)).decode()


def is_password_hash(password: str) -> bool:
    """Return whether this is a hash of `hash_password`, not a password."""
    return password.startswith("$2")


class HostAccounts:
    """The accounts of hosts at the broker of `settings`, written into `folder`.

    `reload_command`: the argv that makes the broker read them.
    """

    def __init__(self, settings: BrokerSettings, folder: Path, reload_command: Sequence[str]) -> None:
        self._settings = settings
        self._folder = folder
        self._reload_command = tuple(reload_command)

    async def replace_all(self, hashes: Mapping[str, str]) -> None:
        """Give an account to exactly the hosts in `hashes`, with their hashed passwords, and disconnect all others.

        Returns when every server that answers has applied the list. Raises BrokerReloadFailed.
        """
        listed = "".join(render_account(runner_user(host), hashes[host]) for host in sorted(hashes))
        digest = hmac.new(self._settings.password.encode(), listed.encode(), "sha256").hexdigest()
        seen = replace(self._settings, user=account_list_marker(digest[:16]).name, password=f"p{digest[16:]}")
        await anyio.to_thread.run_sync(
            self._write_file, listed + render_account(account_list_marker(digest[:16]), seen.password)
        )
        with anyio.move_on_after(APPLY_TIMEOUT_S):
            await self._reload_until_applied(seen, digest[:16])
            return
        raise BrokerReloadFailed(
            f"the broker has not applied its list of hosts within {APPLY_TIMEOUT_S:.0f} s: check its log, and that "
            f"nats.conf includes {HOSTS_FILE} among its accounts (docs/hosts.md, also for a broker set up for an "
            "earlier release)"
        )

    async def _reload_until_applied(self, seen: BrokerSettings, name: str) -> None:
        """Reload until all servers that answer have this list.

        Reload no more often than needed: while a server reloads, a call may get no answer (its caller tries again).
        """
        servers = [replace(seen, url=url) for url in seen.url.split(",")]
        before, reloaded_at = list[_AccountListState](), -math.inf
        while True:
            taken = [await _probe_server(server, name) for server in servers]
            there = {one for one in taken if one is not _AccountListState.AWAY}
            if there == {_AccountListState.ACTIVE}:
                return
            if there and (taken != before or anyio.current_time() - reloaded_at > RELOAD_INTERVAL_S):
                await reload_broker(self._reload_command)
                before, reloaded_at = taken, anyio.current_time()
            await anyio.sleep(APPLY_CHECK_INTERVAL_S)

    def _write_file(self, listed: str) -> None:
        try:
            atomic_write(self._folder / HOSTS_FILE, listed)
        except OSError as error:
            why = f"the broker's list of hosts in {self._folder} cannot be written ({error})"
            raise BrokerReloadFailed(f"{why}: set enrollment.nats_conf_dir to the folder of nats.conf") from error


async def reload_broker(command: Sequence[str]) -> None:
    """Make the broker read its configuration and its certificate again. Raises BrokerReloadFailed."""
    try:
        with anyio.fail_after(RELOAD_TIMEOUT_S):
            await anyio.run_process(command, stderr=subprocess.STDOUT, env=build_child_environment(os.environ))
    except (OSError, subprocess.CalledProcessError, TimeoutError) as error:
        said = error.output.decode(errors="replace").strip() if isinstance(error, subprocess.CalledProcessError) else ""
        why = said.splitlines()[-1] if said else str(error) or f"no answer in {RELOAD_TIMEOUT_S:.0f} s"
        raise BrokerReloadFailed(
            f"{command[0]} did not reload the broker ({why}): correct enrollment.reload_command"
        ) from error


class _AccountListState(Enum):
    """The state of a list of accounts at one server."""

    AWAY = "it does not answer, or not now"
    UNKNOWN = "it does not know the list's own account"
    INACTIVE = "it knows it, and the account cannot call anything yet"
    ACTIVE = "all accounts of the list work"


async def _probe_server(server: BrokerSettings, name: str) -> _AccountListState:
    one = account_list_marker(name)
    try:
        return (
            _AccountListState.ACTIVE
            if await can_log_in(server, one.inbox, one.publish[0])
            else _AccountListState.INACTIVE
        )
    except BrokerDenied:
        return _AccountListState.UNKNOWN
    except BrokerUnreachable:
        return _AccountListState.AWAY
