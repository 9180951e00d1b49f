"""Child processes that `up` keeps alive, and the ends of those that a killed `up` left behind."""

import os
import shutil
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import anyio
import anyio.abc
import msgspec
import structlog
from msgspec import Struct

from bus.interface import BrokerUnreachable
from bus.nats.health import MonitorClients, has_lost_write_quorum, open_monitor_client
from bus.secret_files import atomic_write
from bus.server.process import NatsServer
from lamplighter.cli.context import USAGE

log = structlog.get_logger()

RESTART_BACKOFF_MIN_S, RESTART_BACKOFF_MAX_S = 0.5, 30.0
RESTART_BACKOFF_RESET_S = 60.0  # a child that lived this long is restarted at once again
PIDS_FILE = "pids.json"
LEFTOVER_STOP_TIMEOUT_S = 15.0
EXIT_POLL_INTERVAL_S = 0.05


class ProcessIdentity(Struct, frozen=True):
    """A process that cannot be taken for another: its id and the time it was started, in clock ticks since boot."""

    pid: int
    started: int


def read_process_identity(pid: int) -> ProcessIdentity | None:
    """The identity of a living process (proc(5), field 22 of stat), None where it is gone or there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else ProcessIdentity(pid, int(fields[19]))


class ChildRegistry:
    """The file that names the children of this `up`, for the next one to end if this one is killed."""

    def __init__(self, data: Path) -> None:
        self._file = data / PIDS_FILE
        self._children: dict[str, ProcessIdentity] = {}

    def record(self, name: str, pid: int) -> None:
        """Child `name` now is process `pid`. On a full disk the file stays as it was: nobody ends for it."""
        identity = read_process_identity(pid)
        if identity is not None:
            self._children[name] = identity
        try:
            atomic_write(self._file, msgspec.json.encode(self._children))
        except OSError as error:
            log.warning("should this `up` be killed, the next one will not end it", process=name, error=str(error))

    def clear(self) -> None:
        """All children have ended."""
        self._file.unlink(missing_ok=True)

    async def stop_leftovers(self) -> list[str]:
        """SIGTERM what an earlier `up` left running, wait, SIGKILL; the names of those ended."""
        try:
            left = msgspec.json.decode(self._file.read_bytes(), type=dict[str, ProcessIdentity])
        except (OSError, msgspec.DecodeError):
            return []
        living = {name: identity for name, identity in left.items() if read_process_identity(identity.pid) == identity}
        for how, patience in ((signal.SIGTERM, LEFTOVER_STOP_TIMEOUT_S), (signal.SIGKILL, LEFTOVER_STOP_TIMEOUT_S)):
            for identity in living.values():
                if read_process_identity(identity.pid) == identity:
                    os.kill(identity.pid, how)
            with anyio.move_on_after(patience):
                while any(read_process_identity(one.pid) == one for one in living.values()):  # noqa: ASYNC110 - a process of another parent
                    await anyio.sleep(EXIT_POLL_INTERVAL_S)
        return list(living)


class ChildMisconfigured(Exception):
    """A child cannot start as it is set up; the message is its own."""


class SupervisedProcess:
    """One process of ours, started again when it ends by itself. `environ` is all that it gets."""

    def __init__(
        self,
        name: str,
        environ: Mapping[str, str],
        logs: Path,
        ledger: ChildRegistry,
        listening: socket.socket | None = None,
    ) -> None:
        self.name = name
        self._environ = dict(environ)
        self._log_file = logs / f"{name}.log"
        self._registry = ledger
        self._fds = (listening.fileno(),) if listening else ()
        self._process: anyio.abc.Process | None = None
        self._stopping = False
        self._was_ready = False

    def mark_ready(self) -> None:
        """It has come up: from now on whatever ends it may pass."""
        self._was_ready = True

    async def run(self) -> None:
        """Keep it alive until `stop`. Raises Misconfigured where it never came up and says that it cannot."""
        wait = RESTART_BACKOFF_MIN_S
        while not self._stopping:
            began = anyio.current_time()
            code = await self._run_once()
            if self._stopping:
                return
            if code == USAGE and not self._was_ready:
                raise ChildMisconfigured(self._last_log_line())
            wait = (
                RESTART_BACKOFF_MIN_S
                if anyio.current_time() - began > RESTART_BACKOFF_RESET_S
                else min(wait * 2, RESTART_BACKOFF_MAX_S)
            )
            log.warning(
                "process ended, starting it again", process=self.name, code=code, wait_s=wait, log=str(self._log_file)
            )
            await anyio.sleep(wait)

    async def _run_once(self) -> int:
        argv = [sys.executable, "-m", "lamplighter", self.name]
        with self._log_file.open("ab") as out:
            process = await anyio.open_process(
                argv,
                env=self._environ,
                stdin=None,
                stdout=out,
                stderr=out,
                pass_fds=self._fds,
                start_new_session=True,  # Ctrl-C in a terminal goes to its whole group: the order of ending is ours
            )
        self._process = process
        self._registry.record(self.name, process.pid)
        return await process.wait()

    def _last_log_line(self) -> str:
        """What it said last, without the name of the program."""
        lines = self._log_file.read_text(errors="replace").rstrip().splitlines()
        return lines[-1].removeprefix("lamplighter: ") if lines else f"{self.name} ended without a word"

    def disable_restart(self) -> None:
        """Do not start it again."""
        self._stopping = True

    async def stop(self, patience_s: float) -> None:
        """SIGTERM, then SIGKILL after `patience_s`."""
        self.disable_restart()
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        with anyio.move_on_after(patience_s) as waited:
            await process.wait()
        if waited.cancelled_caught:
            log.warning("process did not end in time and is killed", process=self.name, patience_s=patience_s)
            process.kill()
            await process.wait()


# MERGED lamplighter/cli/broker.py: The broker of an `up`, kept going: started again when it ends, and when its full
# disk has room again. / nats-server 2.15 that could not write stores nothing more, also once there is room: it has to
# be started anew. It is not / while the disk is full: a start writes, and what it cannot write it may take for lost.


BROKER_CHECK_INTERVAL_S = 2.0
BROKER_MIN_FREE_BYTES = 16 * 1000**2


class BrokerSupervisor:
    """`server`, which runs already, with its data in `folder`."""

    def __init__(self, server: NatsServer, ledger: ChildRegistry, folder: Path) -> None:
        self._server = server
        self._registry = ledger
        self._folder = folder

    async def run(self) -> None:
        """Keep it going, without end."""
        async with open_monitor_client(self._server.monitor_url) as client:
            monitors = MonitorClients((client,), anyio.current_time)
            while True:
                if self._server.pid is not None:
                    self._registry.record("broker", self._server.pid)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._stop_when_writes_fail, monitors)
                    await self._server.wait_until_ended()
                    tasks.cancel_scope.cancel()
                log.warning("the broker ended, starting it again")
                await self._start_until_up()

    async def _start_until_up(self) -> None:
        while True:
            try:
                await self._wait_for_free_space()
                await self._server.start()
            except BrokerUnreachable as error:
                log.warning("the broker does not start, trying again", error=str(error))
                await anyio.sleep(BROKER_CHECK_INTERVAL_S)
            else:
                return

    async def _stop_when_writes_fail(self, monitors: MonitorClients) -> None:
        """End it once it stores nothing more and could again."""
        while not await _has_stopped_writing(monitors):  # noqa: ASYNC110 - another process's state
            await anyio.sleep(BROKER_CHECK_INTERVAL_S)
        await self._wait_for_free_space()
        log.warning("the broker could not write and has room now, restarting it")
        await self._server.stop()

    async def _wait_for_free_space(self) -> None:
        """Return when its disk has some."""
        if not self._has_free_space():
            log.error("the broker's disk is full, it stores nothing: make room there", folder=str(self._folder))
        while not self._has_free_space():  # noqa: ASYNC110 - others make room, and raise no event here
            await anyio.sleep(BROKER_CHECK_INTERVAL_S)

    def _has_free_space(self) -> bool:
        return shutil.disk_usage(self._folder).free >= BROKER_MIN_FREE_BYTES


async def _has_stopped_writing(monitors: MonitorClients) -> bool:
    try:
        return has_lost_write_quorum(await monitors.fetch_all())
    except BrokerUnreachable:  # it is ending; whoever waits for that starts it again
        return False
