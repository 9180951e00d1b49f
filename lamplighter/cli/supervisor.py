"""The data folder of an `up` and the processes that it keeps running there.

The folder has a lock, the keys and the port. The processes are edge and runner, the broker, and what an earlier `up`
left behind.
"""

import fcntl
import os
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NoReturn

import anyio
import anyio.abc
import anyio.to_thread
import click
import msgspec
import structlog
from anyio.abc import TaskStatus
from msgspec import Struct

from bus import secret_files
from bus.interface import BrokerUnreachable, Bus
from bus.nats.health import MonitorClients, has_lost_write_quorum, open_monitor_client
from bus.secret_files import atomic_write
from bus.server.process import NatsServer
from edge.core.clock import utc_now
from edge.owners.api_keys import ApiKeyStore
from edge.owners.audit_log import AuditLog
from lamplighter.cli.context import USAGE
from lamplighter.cli.language import say
from runner.endpoints import ENDPOINT_FILE, load_endpoints
from schemas.backoff import Backoff
from schemas.credentials import Scope
from schemas.endpoint import EndpointInvalid
from schemas.installation import BY_UP

LOCAL_OWNER = "local"
KEYS_FILE = "keys.json"
ENDPOINTS_CHECK_INTERVAL_S = 2.0
BROKER_FILE = "broker.json"  # the broker's address and the edge's password, for `backup` while `up` runs

log = structlog.get_logger()


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


RESTART_BACKOFF = Backoff(first_s=0.5, limit_s=30.0)
RESTART_BACKOFF_RESET_S = 60.0  # a process that ran this long is restarted with the shortest delay
PIDS_FILE = "pids.json"
LEFTOVER_STOP_TIMEOUT_S = 15.0
EXIT_POLL_INTERVAL_S = 0.05
BROKER_CHECK_INTERVAL_S = 2.0
BROKER_MIN_FREE_BYTES = 16 * 1000**2


class ProcessIdentity(Struct, frozen=True):
    """A process that cannot be confused with another: its id, and its start time in clock ticks since boot."""

    pid: int
    started: int


def read_process_identity(pid: int) -> ProcessIdentity | None:
    """Return the identity of a running process (proc(5), field 22 of stat); None if it ended or there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else ProcessIdentity(pid, int(fields[19]))


class ChildRegistry:
    """The file with the processes of this `up`. If it is killed, the next `up` stops them."""

    def __init__(self, data: Path) -> None:
        self._file = data / PIDS_FILE
        self._children: dict[str, ProcessIdentity] = {}

    def record(self, name: str, pid: int) -> None:
        """Record that `name` now is process `pid`. On a full disk the file stays as it was; `up` continues."""
        identity = read_process_identity(pid)
        if identity is not None:
            self._children[name] = identity
        try:
            atomic_write(self._file, msgspec.json.encode(self._children))
        except OSError as error:
            log.warning("child_record_failed", process=name, file=str(self._file), error=str(error))

    def clear(self) -> None:
        """Remove the file: all processes have ended."""
        self._file.unlink(missing_ok=True)

    async def stop_leftovers(self) -> list[str]:
        """Stop the processes of an earlier `up` with SIGTERM, then SIGKILL; return the names of those that ran."""
        try:
            left = msgspec.json.decode(self._file.read_bytes(), type=dict[str, ProcessIdentity])
        except (OSError, msgspec.DecodeError):
            return []
        living = {name: identity for name, identity in left.items() if read_process_identity(identity.pid) == identity}
        for signum in (signal.SIGTERM, signal.SIGKILL):
            for identity in living.values():
                if read_process_identity(identity.pid) == identity:
                    os.kill(identity.pid, signum)
            with anyio.move_on_after(LEFTOVER_STOP_TIMEOUT_S):
                while any(read_process_identity(one.pid) == one for one in living.values()):  # noqa: ASYNC110 - a process of another parent
                    await anyio.sleep(EXIT_POLL_INTERVAL_S)
        return list(living)


class ChildMisconfigured(Exception):
    """A process cannot start with its settings. The message is its own."""


class SupervisedProcess:
    """A process that is restarted when it ends by itself. `environ` is its whole environment.

    Its log is a file in the folder `logs`, or with None our own stderr.
    """

    def __init__(
        self,
        name: str,
        environ: Mapping[str, str],
        logs: Path | None,
        registry: ChildRegistry,
        listening: socket.socket | None = None,
    ) -> None:
        self.name = name
        self._environ = dict(environ)
        self._log_file = logs / f"{name}.log" if logs else None
        self._registry = registry
        self._fds = (listening.fileno(),) if listening else ()
        self._process: anyio.abc.Process | None = None
        self._stopping = False
        self._was_ready = False

    def mark_ready(self) -> None:
        """Record that the process came up: from now on it is restarted whatever its exit code."""
        self._was_ready = True

    async def run(self) -> None:
        """Keep the process running until `stop`. Raises ChildMisconfigured if it never came up and exits with USAGE."""
        failures = 0
        while not self._stopping:
            began = anyio.current_time()
            code = await self._run_once()
            if self._stopping:
                return
            if code == USAGE and not self._was_ready:
                raise ChildMisconfigured(self._last_log_line())
            failures = 0 if anyio.current_time() - began > RESTART_BACKOFF_RESET_S else failures + 1
            wait = RESTART_BACKOFF.delay_s(failures)
            log.warning(
                "process_ended",
                process=self.name,
                code=code,
                wait_s=wait,
                log=str(self._log_file or "above"),
            )
            await anyio.sleep(wait)

    async def _run_once(self) -> int:
        argv = [sys.executable, "-m", "lamplighter", self.name]
        with self._log_file.open("ab") if self._log_file else nullcontext(sys.stderr) as out:
            process = await anyio.open_process(
                argv,
                env=self._environ,
                stdin=None,
                stdout=out,
                stderr=out,
                pass_fds=self._fds,
                start_new_session=True,  # otherwise Ctrl-C would stop all processes at once, in no order
            )
        self._process = process
        self._registry.record(self.name, process.pid)
        return await process.wait()

    def _last_log_line(self) -> str:
        """Return the last line of the log, without the name of the program."""
        if self._log_file is None:
            return f"{self.name} cannot start with its settings: its last line above says why"
        lines = self._log_file.read_text(errors="replace").rstrip().splitlines()
        return lines[-1].removeprefix("lamplighter: ") if lines else f"{self.name} ended without output"

    def disable_restart(self) -> None:
        """Do not restart the process when it ends."""
        self._stopping = True

    async def stop(self, timeout_s: float) -> None:
        """Send SIGTERM, then SIGKILL after `timeout_s`."""
        self.disable_restart()
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        with anyio.move_on_after(timeout_s) as waiting:
            await process.wait()
        if waiting.cancelled_caught:
            log.warning("process_killed", process=self.name, timeout_s=timeout_s)
            process.kill()
            await process.wait()


class BrokerSupervisor:
    """The broker of an `up`, restarted when it ends, and when its disk was full and has room again.

    After a failed write, nats-server 2.15 stores nothing until it is restarted, even when there is room. It is not
    restarted while the disk is full: it writes when it starts, and may treat data as lost that it cannot write.
    """

    def __init__(self, server: NatsServer, registry: ChildRegistry, folder: Path) -> None:
        self._server = server
        self._registry = registry
        self._folder = folder

    async def run(self) -> None:
        """Keep the broker running, without end."""
        async with open_monitor_client(self._server.monitor_url) as client:
            monitors = MonitorClients((client,), anyio.current_time)
            while True:
                if self._server.pid is not None:
                    self._registry.record("broker", self._server.pid)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._stop_when_writes_fail, monitors)
                    await self._server.wait_until_ended()
                    tasks.cancel_scope.cancel()
                log.warning("broker_ended")
                await self._start_until_up()

    async def _start_until_up(self) -> None:
        while True:
            try:
                await self._wait_for_free_space()
                await self._server.start()
            except BrokerUnreachable as error:
                log.warning("broker_start_failed", error=str(error))
                await anyio.sleep(BROKER_CHECK_INTERVAL_S)
            else:
                return

    async def _stop_when_writes_fail(self, monitors: MonitorClients) -> None:
        """Stop the broker when it cannot store anything although its disk has room."""
        while not await _has_stopped_writing(monitors):  # noqa: ASYNC110 - another process's state
            await anyio.sleep(BROKER_CHECK_INTERVAL_S)
        await self._wait_for_free_space()
        log.warning("broker_restarted", reason="it could not write, and its disk has room now")
        await self._server.stop()

    async def _wait_for_free_space(self) -> None:
        """Return when the broker's disk has free space."""
        if not self._has_free_space():
            log.error("broker_disk_full", folder=str(self._folder), fix="free some space on that disk")
        while not self._has_free_space():  # noqa: ASYNC110 - nothing notifies us of free space
            await anyio.sleep(BROKER_CHECK_INTERVAL_S)

    def _has_free_space(self) -> bool:
        return shutil.disk_usage(self._folder).free >= BROKER_MIN_FREE_BYTES


async def _has_stopped_writing(monitors: MonitorClients) -> bool:
    try:
        return has_lost_write_quorum(await monitors.fetch_all())
    except BrokerUnreachable:  # the broker is ending, and `run` restarts it
        return False


async def report_invalid_endpoints(
    folders: Sequence[Path], *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Log each change of an endpoint.toml that the runner cannot use, without end. Changes count from `started` on.

    The runner itself refuses to start with a file that is not valid. A file that is being written is not complete, so a
    change is checked only when the next look finds it again.
    """
    checked = changed = await anyio.to_thread.run_sync(_stamp_endpoint_files, folders)
    task_status.started()
    while True:
        await anyio.sleep(ENDPOINTS_CHECK_INTERVAL_S)
        before, changed = changed, await anyio.to_thread.run_sync(_stamp_endpoint_files, folders)
        if changed == checked or changed != before:
            continue
        checked = changed
        if (problem := await anyio.to_thread.run_sync(_find_invalid_endpoint, folders)) is not None:
            log.warning("endpoints_not_valid", error=problem, effect="the runner keeps its endpoints as they were")


def _stamp_endpoint_files(folders: Sequence[Path]) -> tuple[tuple[str, int, int], ...]:
    """Return what differs after each change of an endpoint.toml. Blocking."""
    found = []
    for folder in folders:
        for path in sorted([*folder.glob(ENDPOINT_FILE), *folder.glob(f"*/{ENDPOINT_FILE}")]):
            with suppress(OSError):
                status = path.stat()
                found.append((str(path), status.st_size, status.st_mtime_ns))
    return tuple(found)


def _find_invalid_endpoint(folders: Sequence[Path]) -> str | None:
    """Return which file is not valid, and why. Blocking."""
    try:
        load_endpoints(folders)
    except (EndpointInvalid, OSError) as error:
        return str(error)
    return None
