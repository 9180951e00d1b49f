"""Power driver that runs programs of the operator.

The contract, which the recipes in deploy/power keep:

- every program gets the host's id in `LAMPLIGHTER_HOST`, the call's id in `LAMPLIGHTER_CALL`, and no standard input;
- it inherits the common variables of the edge's environment (`schemas.environment`) and those that the host's
  settings name; the folder with our own program `lamplighter` is the last one in its PATH;
- `on` and `off` exit with 0 if the order was accepted or there was nothing to do, and with 75 (EX_TEMPFAIL) if there
  is no capacity. Any other exit is a failure, and the last line of output is its message;
- `state` writes one word on its last line: off, pending, starting, on, stopping, error or unknown. Without such a word
  the exit code counts, so that `ping -c1` works: 0 is on, 1 is off, anything else is unknown;
- `states` gets the ids of several hosts in `LAMPLIGHTER_HOSTS`, with spaces between them, and no `LAMPLIGHTER_HOST`. It
  writes a line for each, with the id and such a word. Any exit but 0 is a failure, as of `on`;
- a program that exceeds its timeout is killed together with its process group.
"""

import os
import signal
import tempfile
from collections.abc import Collection, Hashable, Mapping
from contextlib import suppress
from subprocess import DEVNULL
from sysconfig import get_path
from typing import IO, NamedTuple

import anyio
from anyio import CancelScope, to_thread
from anyio.abc import Process

from schemas.environment import build_child_environment
from schemas.host_config import CommandHostConfig
from schemas.power import ReportedPower
from schemas.power_driver import ClusterPowerDriver, NoCapacity, PowerCallFailed

NO_CAPACITY_EXIT_CODE = 75
OUTPUT_LIMIT_BYTES = 256 * 1024  # a line for each host of a cluster
REPORTED_BY_EXIT_CODE: Mapping[int, ReportedPower] = {0: ReportedPower.ON, 1: ReportedPower.OFF}


class _ProgramResult(NamedTuple):
    exit_code: int
    lines: tuple[str, ...]

    @property
    def last_line(self) -> str:
        return self.lines[-1].strip() if self.lines else ""


class CommandDriver(ClusterPowerDriver):
    """Runs the programs of a host's settings. `environ`: the environment of the edge."""

    def __init__(self, host: str, declared: CommandHostConfig, environ: Mapping[str, str]) -> None:
        self._host = host
        self._declared = declared
        inherited = build_child_environment(environ, *declared.inherit)
        # A service of systemd has a PATH without the virtual environment that it runs in.
        path = os.pathsep.join([inherited.get("PATH", os.defpath), get_path("scripts")])
        self._environ = inherited | {"PATH": path} | declared.env

    @property
    def can_report_state(self) -> bool:
        return self._declared.state is not None or self._declared.states is not None

    @property
    def cluster(self) -> Hashable | None:
        declared = self._declared
        return declared.states and (declared.states, frozenset(declared.env.items()), declared.inherit)

    async def start(self, call_id: str) -> None:
        await self._run_power_call(self._declared.on, call_id)

    async def stop(self, call_id: str) -> None:
        """Run `off`. Without it, the runner reads in the host's record that it must power off."""
        if self._declared.off is not None:
            await self._run_power_call(self._declared.off, call_id)

    async def state(self) -> ReportedPower:
        if self._declared.states is not None:
            return (await self.states([self._host])).get(self._host, ReportedPower.UNKNOWN)
        if self._declared.state is None:
            return ReportedPower.UNKNOWN
        result = await self._run_program(self._declared.state, self._call_variables(""))
        word = result.last_line.lower()
        return (
            ReportedPower(word)
            if word in set(ReportedPower)
            else REPORTED_BY_EXIT_CODE.get(result.exit_code, ReportedPower.UNKNOWN)
        )

    async def states(self, hosts: Collection[str]) -> Mapping[str, ReportedPower]:
        if self._declared.states is None:
            return {}
        result = await self._run_program(self._declared.states, {"LAMPLIGHTER_HOSTS": " ".join(hosts)})
        _check_exit(self._declared.states, result)
        rows = (line.split() for line in result.lines)
        words = {row[0]: row[1].lower() for row in rows if len(row) == 2}
        return {host: ReportedPower(word) for host, word in words.items() if word in set(ReportedPower)}

    async def _run_power_call(self, argv: tuple[str, ...], call_id: str) -> None:
        _check_exit(argv, await self._run_program(argv, self._call_variables(call_id)))

    def _call_variables(self, call_id: str) -> dict[str, str]:
        return {"LAMPLIGHTER_HOST": self._host, "LAMPLIGHTER_CALL": call_id}

    async def _run_program(self, argv: tuple[str, ...], variables: Mapping[str, str]) -> _ProgramResult:
        environ = {**self._environ, **variables}
        # A file, not a pipe: a background process that the program leaves would keep a pipe open.
        with tempfile.TemporaryFile() as output:
            try:
                process = await anyio.open_process(
                    argv, stdin=DEVNULL, stdout=output, stderr=output, env=environ, start_new_session=True
                )
            except OSError as error:
                raise PowerCallFailed(f"{argv[0]} cannot be run ({error.strerror}): correct the host's argv") from error
            exit_code = await _wait_or_kill(process)
            return _ProgramResult(exit_code, await to_thread.run_sync(_read_lines, output))


async def _wait_or_kill(process: Process) -> int:
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with CancelScope(shield=True):
                await process.wait()


def _read_lines(output: IO[bytes]) -> tuple[str, ...]:
    output.seek(max(0, output.seek(0, os.SEEK_END) - OUTPUT_LIMIT_BYTES))
    return tuple(output.read().decode(errors="replace").strip().splitlines())


def _check_exit(argv: tuple[str, ...], result: _ProgramResult) -> None:
    """Raise PowerCallFailed or NoCapacity, unless the program has succeeded."""
    if result.exit_code == 0:
        return
    message = f"{argv[0]}: {result.last_line or f'exit {result.exit_code}'}"
    if result.exit_code == NO_CAPACITY_EXIT_CODE:
        raise NoCapacity(message)
    raise PowerCallFailed(f"{message}; run it by hand to see why")
