"""A process stops exactly at the armed point, once, and continues."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.chaos_installation import continue_process
from tests.chaos.fault_points import FOLDER_ENV, CallSide, FaultPoints, is_stopped
from tests.support.installation import ROOT
from tests.support.wait import wait_for

# Prints each call, so that calls before and after a point can be told apart.
PROGRAM = """
import asyncio
from tests.chaos.fault_points import FaultPoints

class Port:
    async def write(self, what):
        print(what, flush=True)

    def add(self, what):
        print(what, flush=True)

async def main():
    port = Port()
    FaultPoints.of_this_process().over(port, "port", {"write": lambda what: what})
    FaultPoints.of_this_process().over_blocking(port, "port", {"add": lambda what: what})
    await port.write("one")
    await port.write("two")
    await asyncio.to_thread(port.add, "two")

input()
asyncio.run(main())
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a program that waits for a line before it begins."""
    environ = {FOLDER_ENV: str(tmp_path), "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(argv, env=environ, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.mark.parametrize(
    ("point", "moment", "output"),
    [
        ("port.write.two", CallSide.BEFORE, "one\n"),
        ("port.write.two", CallSide.AFTER, "one\ntwo\n"),
        ("port.add.two", CallSide.BEFORE, "one\ntwo\n"),  # in a thread
    ],
)
async def test_it_stands_on_the_side_of_the_call_that_was_armed_and_only_once(
    tmp_path: Path, program: subprocess.Popen[str], point: str, moment: CallSide, output: str
):
    faults = FaultPoints(tmp_path)
    faults.arm(point, moment)
    assert not faults.reached(point, moment, program.pid)
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdin.write("\n")
    program.stdin.flush()

    async def stands() -> bool:
        return faults.reached(point, moment, program.pid)

    await wait_for(stands)
    lines = [program.stdout.readline() for _ in output.splitlines()]
    assert "".join(lines) == output
    continue_process(program.pid)
    rest, _ = program.communicate(timeout=60)
    assert output + rest == "one\ntwo\ntwo\n"
    assert program.returncode == 0
    assert not faults.reached(point, moment, program.pid)


async def test_a_process_that_was_killed_where_it_stood_stands_there_no_more(
    tmp_path: Path, program: subprocess.Popen[str]
):
    program.send_signal(signal.SIGSTOP)

    async def stands() -> bool:
        return is_stopped(program.pid)

    await wait_for(stands)
    program.kill()
    program.wait()
    assert not is_stopped(program.pid)
