"""The switch as programs of the owner: whatever can be scripted can be switched.

The contract, which the recipes in deploy/power keep:

- every program gets the host's id in `LAMPLIGHTER_HOST` and the call's in `LAMPLIGHTER_CALL` and no standard input;
- of the edge's environment it inherits what any program needs (`schemas.environment`) and what the declaration names;
- `on` and `off` exit 0 when the order was taken, or there was nothing to do; 75 (EX_TEMPFAIL) when there is no
  capacity; anything else is a failure, of which the last line they wrote is told;
- `state` writes one word on its last line: off, starting, on, stopping, error or unknown. Without such a word its exit
  says it, so that `ping -c1` will do: 0 is on, 1 is off, anything else is unknown;
- a program that runs too long is killed with everything it started in its own process group.
"""

import os
import signal
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from subprocess import DEVNULL
from typing import IO, NamedTuple

import anyio
from anyio import CancelScope, to_thread
from anyio.abc import Process

from edge.power.drivers.port import NoCapacity, PowerCallFailed, PowerDriver
from schemas.environment import build_child_environment
from schemas.host_config import CommandHostConfig
from schemas.power import ReportedPower

NO_CAPACITY_EXIT_CODE = 75
OUTPUT_LIMIT_BYTES = 16 * 1024
REPORTED_BY_EXIT_CODE: Mapping[int, ReportedPower] = {0: ReportedPower.ON, 1: ReportedPower.OFF}


class _ProgramResult(NamedTuple):
    exit_code: int
    last_line: str


class CommandDriver(PowerDriver):
    """Runs the argv of a declaration; `environ` is what the programs inherit a part of."""

    def __init__(self, host: str, declared: CommandHostConfig, environ: Mapping[str, str]) -> None:
        self._host = host
        self._declared = declared
        self._environ = build_child_environment(environ, *declared.inherit) | declared.env

    @property
    def can_report_state(self) -> bool:
        return self._declared.state is not None

    async def start(self, call_id: str) -> None:
        await self._run_power_call(self._declared.on, call_id)

    async def stop(self, call_id: str) -> None:
        """Without `off` there is nothing to run: the runner reads in its record that it is to power off."""
        if self._declared.off is not None:
            await self._run_power_call(self._declared.off, call_id)

    async def state(self) -> ReportedPower:
        if self._declared.state is None:
            return ReportedPower.UNKNOWN
        ended = await self._run_program(self._declared.state, "")
        word = ended.last_line.strip().lower()
        return (
            ReportedPower(word)
            if word in set(ReportedPower)
            else REPORTED_BY_EXIT_CODE.get(ended.exit_code, ReportedPower.UNKNOWN)
        )

    async def _run_power_call(self, argv: tuple[str, ...], call_id: str) -> None:
        ended = await self._run_program(argv, call_id)
        if ended.exit_code == 0:
            return
        said = f"{argv[0]}: {ended.last_line.strip() or f'exit {ended.exit_code}'}"
        raise (
            NoCapacity(said) if ended.exit_code == NO_CAPACITY_EXIT_CODE else PowerCallFailed(f"{said}; run it by hand")
        )

    async def _run_program(self, argv: tuple[str, ...], call_id: str) -> _ProgramResult:
        environ = {**self._environ, "LAMPLIGHTER_HOST": self._host, "LAMPLIGHTER_CALL": call_id}
        # A file, not a pipe: what the program leaves running behind it would hold a pipe open for ever.
        with tempfile.TemporaryFile() as output:
            try:
                process = await anyio.open_process(
                    argv, stdin=DEVNULL, stdout=output, stderr=output, env=environ, start_new_session=True
                )
            except OSError as error:
                raise PowerCallFailed(f"{argv[0]} cannot be run ({error.strerror}): correct the host's argv") from error
            exit_code = await _wait_or_kill(process)
            return _ProgramResult(exit_code, await to_thread.run_sync(_last_line, output))


async def _wait_or_kill(process: Process) -> int:
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with CancelScope(shield=True):
                await process.wait()


def _last_line(output: IO[bytes]) -> str:
    output.seek(max(0, output.seek(0, os.SEEK_END) - OUTPUT_LIMIT_BYTES))
    lines = output.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
