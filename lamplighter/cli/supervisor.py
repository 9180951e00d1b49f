"""Child processes that `up` keeps alive, and the ends of those that a killed `up` left behind."""

import os
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

from bus.private import write_private
from lamplighter.cli.session import USAGE

log = structlog.get_logger()

RESTART_LEAST_S, RESTART_MOST_S = 0.5, 30.0
SETTLED_S = 60.0  # a child that lived this long is restarted at once again
PIDS = "pids.json"
END_S = 15.0
POLL_S = 0.05


class Born(Struct, frozen=True):
    """A process that cannot be taken for another: its id and the time it was started, in clock ticks since boot."""

    pid: int
    started: int


def born(pid: int) -> Born | None:
    """The identity of a living process (proc(5), field 22 of stat), None where it is gone or there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else Born(pid, int(fields[19]))


class Ledger:
    """The file that names the children of this `up`, for the next one to end if this one is killed."""

    def __init__(self, data: Path) -> None:
        self._file = data / PIDS
        self._children: dict[str, Born] = {}

    def note(self, name: str, pid: int) -> None:
        """Child `name` now is process `pid`. On a full disk the file stays as it was: nobody ends for it."""
        identity = born(pid)
        if identity is not None:
            self._children[name] = identity
        try:
            write_private(self._file, msgspec.json.encode(self._children))
        except OSError as error:
            log.warning("should this `up` be killed, the next one will not end it", process=name, error=str(error))

    def clear(self) -> None:
        """All children have ended."""
        self._file.unlink(missing_ok=True)

    async def end_leftovers(self) -> list[str]:
        """SIGTERM what an earlier `up` left running, wait, SIGKILL; the names of those ended."""
        try:
            left = msgspec.json.decode(self._file.read_bytes(), type=dict[str, Born])
        except (OSError, msgspec.DecodeError):
            return []
        living = {name: identity for name, identity in left.items() if born(identity.pid) == identity}
        for how, patience in ((signal.SIGTERM, END_S), (signal.SIGKILL, END_S)):
            for identity in living.values():
                if born(identity.pid) == identity:
                    os.kill(identity.pid, how)
            with anyio.move_on_after(patience):
                while any(born(one.pid) == one for one in living.values()):  # noqa: ASYNC110 - a process of another parent
                    await anyio.sleep(POLL_S)
        return list(living)


class Misconfigured(Exception):
    """A child cannot start as it is set up; the message is its own."""


class Child:
    """One process of ours, started again when it ends by itself. `environ` is all that it gets."""

    def __init__(
        self, name: str, environ: Mapping[str, str], logs: Path, ledger: Ledger, listening: socket.socket | None = None
    ) -> None:
        self.name = name
        self._environ = dict(environ)
        self._log_file = logs / f"{name}.log"
        self._ledger = ledger
        self._fds = (listening.fileno(),) if listening else ()
        self._process: anyio.abc.Process | None = None
        self._stopping = False
        self._settled = False

    def settle(self) -> None:
        """It has come up: from now on whatever ends it may pass."""
        self._settled = True

    async def run(self) -> None:
        """Keep it alive until `stop`. Raises Misconfigured where it never came up and says that it cannot."""
        wait = RESTART_LEAST_S
        while not self._stopping:
            began = anyio.current_time()
            code = await self._once()
            if self._stopping:
                return
            if code == USAGE and not self._settled:
                raise Misconfigured(self._last_word())
            wait = RESTART_LEAST_S if anyio.current_time() - began > SETTLED_S else min(wait * 2, RESTART_MOST_S)
            log.warning(
                "process ended, starting it again", process=self.name, code=code, wait_s=wait, log=str(self._log_file)
            )
            await anyio.sleep(wait)

    async def _once(self) -> int:
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
        self._ledger.note(self.name, process.pid)
        return await process.wait()

    def _last_word(self) -> str:
        """What it said last, without the name of the program."""
        lines = self._log_file.read_text(errors="replace").rstrip().splitlines()
        return lines[-1].removeprefix("lamplighter: ") if lines else f"{self.name} ended without a word"

    def retire(self) -> None:
        """Do not start it again."""
        self._stopping = True

    async def stop(self, patience_s: float) -> None:
        """SIGTERM, then SIGKILL after `patience_s`."""
        self.retire()
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
