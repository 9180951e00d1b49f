"""A systemd unit played by a test: its command is started as the unit says, and reports to a socket of the test."""

import os
import shlex
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import anyio.abc

from tests.support.bytecode import BYTECODE_ENVIRON

STATE_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0


def parse_unit(text: str) -> dict[str, list[str]]:
    """Return the settings of a unit by name, each with all its values."""
    settings: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, is_setting, value = line.partition("=")
        if is_setting and not line.startswith("#"):
            settings.setdefault(name, []).append(value)
    return settings


class ServiceUnit:
    """The service of one unit. `environ` is what its drop-in would add. Its stderr goes to `log`, as to the journal."""

    def __init__(self, unit: Path, environ: Mapping[str, str], log: Path, notify: socket.socket) -> None:
        self._settings = parse_unit(unit.read_text())
        self._environ = dict(environ)
        self._log = log
        self._notify = notify
        self._states: list[str] = []
        self._process: anyio.abc.Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def add_environment(self, **environ: str) -> None:
        """Set variables for the next start, as a drop-in does."""
        self._environ |= environ

    async def start(self, *, watchdog_s: float = 3.0) -> None:
        """Start the main process with no environment but that of the unit."""
        assert self._settings["Type"] == ["notify"]
        (command,) = self._settings["ExecStart"]
        environ = dict(shlex.split(one)[0].split("=", 1) for one in self._settings.get("Environment", ()))
        environ |= self._environ | BYTECODE_ENVIRON
        environ |= {"PATH": os.defpath, "HOME": str(self._log.parent), "NOTIFY_SOCKET": self._notify.getsockname()}
        environ["WATCHDOG_USEC"] = str(int(watchdog_s * 1e6))
        self._states.clear()
        with self._log.open("ab") as log:
            self._process = await anyio.open_process(
                shlex.split(command), env=environ, stdin=None, stdout=log, stderr=log, cwd="/", start_new_session=True
            )

    async def wait_for_state(self, state: str) -> None:
        """Wait until the process reports `state`, as in READY=1. Raises TimeoutError with the log."""
        with anyio.move_on_after(STATE_TIMEOUT_S):
            while state not in self._states:
                await anyio.wait_readable(self._notify)
                self._states += self._notify.recv(4096).decode().splitlines()
            return
        raise TimeoutError(f"no {state} but {self._states}: {self._log.read_text(errors='replace')[-3000:]}")

    def has_reported(self, state: str) -> bool:
        """Return whether `state` was among what `wait_for_state` has read."""
        return state in self._states

    async def kill(self) -> None:
        """Kill the main process and nothing else, as a crash under KillMode=process does."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> int:
        """Send SIGTERM to the main process; return its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        await self.wait_for_state("STOPPING=1")
        with anyio.fail_after(STOP_TIMEOUT_S):
            return await self._process.wait()

    async def end(self) -> None:
        """End the main process if it still runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            with anyio.move_on_after(STOP_TIMEOUT_S, shield=True) as waiting:
                await self._process.wait()
            if waiting.cancelled_caught:
                self._process.kill()


@asynccontextmanager
async def play_unit(unit: Path, log: Path, **environ: str) -> AsyncIterator[ServiceUnit]:
    """Yield the service of `unit`, not started yet; end it after the block."""
    with TemporaryDirectory(dir="/tmp") as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(f"{folder}/notify")  # short: a unix socket's name has at most 107 bytes
        notify.setblocking(False)
        played = ServiceUnit(unit, environ, log, notify)
        try:
            yield played
        finally:
            await played.end()
