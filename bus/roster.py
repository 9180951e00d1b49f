"""The broker's list of users, as far as hosts that have joined are on it: written beside its nats.conf and read anew.

The folder is the one of `bus.server`: `ours.conf` has the blocks of everybody else and is only read, `joined.conf` is
written for a broker that starts anew, `users.conf` is what nats.conf includes. One broker reads it; of a cluster every
server needs the list, so there `reload` has to bring it to each of them before it makes it read.
"""

import os
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio
from msgspec.structs import replace

from bus.dial import admits
from bus.port import BusError
from bus.private import write_private
from bus.server import JOINED, OURS, USERS
from bus.settings import BrokerSettings
from bus.users import blocks, inbox, listed, runner_name
from schemas.environ import handed_on

RELOAD_S = 20.0


class NotReloaded(BusError):
    """The broker could not be told. The message says what failed and what to do."""


def new_password() -> str:
    """256 random bits: nothing slow has to guard them. The letter in front keeps nats.conf from seeing a number."""
    return f"p{secrets.token_urlsafe(32)}"


class Roster:
    """The hosts' users at the broker of `settings`, kept in `folder`; `reload` is the argv that makes it read them."""

    def __init__(self, settings: BrokerSettings, folder: Path, reload: Sequence[str]) -> None:
        self._settings = settings
        self._folder = folder
        self._reload = tuple(reload)

    async def write(self, passwords: Mapping[str, str]) -> None:
        """Let in exactly the hosts in `passwords`; the connections of others are cut. Raises NotReloaded."""
        await anyio.to_thread.run_sync(self._write, passwords)
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

    def _write(self, passwords: Mapping[str, str]) -> None:
        try:
            ours = (self._folder / OURS).read_text()
            named = {runner_name(host): password for host, password in passwords.items()}
            joined = blocks(named, tuple(passwords))
            write_private(self._folder / JOINED, joined)
            write_private(self._folder / USERS, listed(ours, joined))
        except OSError as error:
            why = f"the broker's users in {self._folder} cannot be written ({error})"
            raise NotReloaded(f"{why}: set joining.folder to the folder of nats.conf") from error

    async def admits(self, host: str, password: str) -> bool:
        """Whether the broker lets the host in with this password, tried out. Raises Unreachable."""
        user = runner_name(host)
        return await admits(replace(self._settings, user=user, password=password), inbox(user))
