"""The broker's list of hosts that have joined: a file beside its nats.conf that holds an account for each of them.

The folder is the one of `bus.server`: `hosts.conf` is written here, and nats.conf includes it among its accounts. One
broker reads it; of a cluster every server needs it, so there `reload` has to bring it to each server before it makes
that server read it.

Which list a server has read is seen by logging in: each list has one more account, named after the list's content. An
account that a reload adds cannot call anything before the next reload (nats-server 2.15.1: its imports are dead). So
that account is also asked to call something, and the server is reloaded again until the call is answered: then all
accounts of this list work.
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

from bus.accounts import account
from bus.dial import answered
from bus.port import BusError, Denied, Unreachable
from bus.private import write_private
from bus.server import HOSTS
from bus.settings import BrokerSettings
from bus.users import mark, runner
from schemas.environ import handed_on

RELOAD_S = 20.0
TAKEN_S = 10.0
LOOK_S = 0.05
RELOADED_S = 2.0  # a reload with 200 connected hosts takes half a second
# The fewest rounds there are, 1 ms: the passwords are 256 random bits, which nobody guesses however fast the hash is.
# A reload compares the password of every connection again, one after the other.
HASH_COST = 4


class NotReloaded(BusError):
    """The broker could not be told. The message says what failed and what to do."""


def new_password() -> str:
    """256 random bits."""
    return secrets.token_urlsafe(32)


def hashed(password: str) -> str:
    """The password as the broker checks it and as it is stored."""
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(HASH_COST)).decode()


def is_hashed(password: str) -> bool:
    """Whether this is what `hashed` makes, and not a password."""
    return password.startswith("$2")


class Roster:
    """The hosts' accounts at the broker of `settings`, kept in `folder`.

    `reload`: the argv that makes the broker read them.
    """

    def __init__(self, settings: BrokerSettings, folder: Path, reload: Sequence[str]) -> None:
        self._settings = settings
        self._folder = folder
        self._reload = tuple(reload)

    async def write(self, hashes: Mapping[str, str]) -> None:
        """Let in exactly the hosts in `hashes`, each with its hashed password; the connections of others are cut.

        Returns when every server of the broker that answers does so. Raises NotReloaded.
        """
        listed = "".join(account(runner(host), hashes[host]) for host in sorted(hashes))
        digest = hmac.new(self._settings.password.encode(), listed.encode(), "sha256").hexdigest()
        seen = replace(self._settings, user=mark(digest[:16]).name, password=f"p{digest[16:]}")
        await anyio.to_thread.run_sync(self._write, listed + account(mark(digest[:16]), seen.password))
        with anyio.move_on_after(TAKEN_S):
            await self._told(seen, digest[:16])
            return
        raise NotReloaded(
            f"the broker has not taken over its list of hosts in {TAKEN_S:.0f} s: check its log, and that nats.conf "
            f"includes {HOSTS} among its accounts (docs/hosts.md, also for a broker set up for an earlier release)"
        )

    async def _told(self, seen: BrokerSettings, name: str) -> None:
        """Reload until all servers that answer have this list.

        No more often than needed: while a server reloads, a call may find nobody who answers (its caller asks again).
        """
        servers = [replace(seen, url=url) for url in seen.url.split(",")]
        before, reloaded_at = list[_Taken](), -math.inf
        while True:
            taken = [await _taken(server, name) for server in servers]
            there = {one for one in taken if one is not _Taken.AWAY}
            if there == {_Taken.WHOLE}:
                return
            if there and (taken != before or anyio.current_time() - reloaded_at > RELOADED_S):
                await self._read()
                before, reloaded_at = taken, anyio.current_time()
            await anyio.sleep(LOOK_S)

    async def _read(self) -> None:
        try:
            with anyio.fail_after(RELOAD_S):
                await anyio.run_process(self._reload, stderr=subprocess.STDOUT, env=handed_on(os.environ))
        except (OSError, subprocess.CalledProcessError, TimeoutError) as error:
            said = (
                error.output.decode(errors="replace").strip()
                if isinstance(error, subprocess.CalledProcessError)
                else ""
            )
            why = said.splitlines()[-1] if said else str(error) or f"no answer in {RELOAD_S:.0f} s"
            raise NotReloaded(f"{self._reload[0]} did not reload the broker ({why}): correct joining.reload") from error

    def _write(self, listed: str) -> None:
        try:
            write_private(self._folder / HOSTS, listed)
        except OSError as error:
            why = f"the broker's list of hosts in {self._folder} cannot be written ({error})"
            raise NotReloaded(f"{why}: set joining.folder to the folder of nats.conf") from error


class _Taken(Enum):
    """How far a server is with a list."""

    AWAY = "it does not answer, or not now"
    NOT = "it does not know the list's own account"
    DEAD = "it knows it, and the account cannot call anything yet"
    WHOLE = "all accounts of the list work"


async def _taken(server: BrokerSettings, name: str) -> _Taken:
    one = mark(name)
    try:
        return _Taken.WHOLE if await answered(server, one.inbox, one.publish[0]) else _Taken.DEAD
    except Denied:
        return _Taken.NOT
    except Unreachable:
        return _Taken.AWAY
