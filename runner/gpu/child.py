"""A running NVML child, as the watch needs it."""

import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from subprocess import DEVNULL, PIPE
from typing import Protocol, cast

import anyio
from anyio.abc import ByteReceiveStream, Process
from anyio.streams.buffered import BufferedByteReceiveStream

from runner.gpu.wire import LINE_BYTES
from schemas.environ import CARDS, handed_on


class Child(Protocol):
    """A process that writes lines and may be stuck in the kernel."""

    async def line(self) -> bytes:
        """The next line of stdout; raises anyio.EndOfStream or anyio.IncompleteRead when there is none."""
        ...

    def kill(self) -> None:
        """Ask the kernel to end it; a process inside a hung driver goes on until the driver lets it go."""
        ...

    async def ended(self) -> int:
        """Wait for its exit code, however long the driver holds it."""
        ...


Spawn = Callable[[], Awaitable[Child]]
"""Starts a child; raises OSError when it cannot."""


class NvmlProcess:
    """`python -m runner.gpu.nvml` with a pipe on its stdout. Its stderr is the runner's: only a bug writes there."""

    def __init__(self, process: Process, stdout: ByteReceiveStream) -> None:
        self._process = process
        self._stdout = BufferedByteReceiveStream(stdout)

    async def line(self) -> bytes:
        return await self._stdout.receive_until(b"\n", LINE_BYTES)

    def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()

    async def ended(self) -> int:
        code = await self._process.wait()
        await self._stdout.aclose()
        return code


def nvml(interval_s: float = 1.0, renew_s: float = 60.0, env: Mapping[str, str] | None = None) -> Spawn:
    """Start children that read all cards every `interval_s`, and end `renew_s` after a card was lost.

    `env` replaces what they inherit of the runner's environment.
    """
    inherited = handed_on(os.environ, prefixes=CARDS) if env is None else env

    async def spawn() -> Child:
        argv = [sys.executable, "-m", "runner.gpu.nvml", str(interval_s), str(renew_s)]
        # Its own session: Ctrl-C in the runner's terminal must drain the runner, not blind it first.
        process = await anyio.open_process(
            argv, stdin=DEVNULL, stdout=PIPE, stderr=None, env=inherited, start_new_session=True
        )
        return NvmlProcess(process, cast(ByteReceiveStream, process.stdout))  # there, for it was opened with PIPE

    return spawn
