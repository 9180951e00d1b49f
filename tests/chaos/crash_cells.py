"""Play a cell of the crash matrix: a process stops at the step, the target is killed, and the job must go on."""

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from msgspec import Struct

from tests.chaos.chaos_installation import ChaosInstallation, continue_process, run_chaos_installation
from tests.chaos.crash_steps import STEPS, CrashCell, CrashStep
from tests.chaos.evidence import JobRevision
from tests.chaos.kill_targets import KILL_TARGETS
from tests.chaos.switched_host import declare_host, run_host
from tests.support.docker_engine import OwnDockerEngine
from tests.support.wait import wait_for

REACH_TIMEOUT_S = 180.0  # a host is switched off and on only after a while
CELL_TIMEOUT_S = 150.0

BY_NAME: Mapping[str, CrashStep] = {step.name: step for step in STEPS}


class CellOutcome(Struct, frozen=True):
    """A cell's job: its events after `submitted`, and the seconds from the kill to the end."""

    cell: CrashCell
    history: tuple[JobRevision, ...]
    seconds: float

    @property
    def events(self) -> str:
        """In a table's words."""
        return " → ".join(revision.event for revision in self.history[1:])


async def play_cell(chaos: ChaosInstallation, cell: CrashCell) -> CellOutcome:
    """Play one cell. Raises AssertionError when the point is not reached or the job does not end."""
    step, target = BY_NAME[cell.step], KILL_TARGETS[cell.target]
    jobs: list[str] = []
    over = anyio.Event()
    async with chaos.client(cell.name) as client, anyio.create_task_group() as tasks:
        chaos.faults(step.process).arm(step.point, cell.moment)

        async def played() -> None:
            jobs.append(await step.play(chaos, client, cell))
            over.set()

        tasks.start_soon(played)
        pid = await _wait_until_stopped(chaos, step, cell)
        began = time.monotonic()
        await target.kill(chaos)
        if target.frozen != step.process:
            continue_process(pid)
        if not (step.switched and target.frozen == "runner"):  # there the host itself restarts its runner
            await target.revive(chaos)
        with anyio.move_on_after(CELL_TIMEOUT_S) as late:
            await over.wait()
        assert not late.cancelled_caught, f"{cell.name}: not over after {CELL_TIMEOUT_S:g} s"
    seconds = time.monotonic() - began
    await chaos.wait_until_clean()
    return CellOutcome(cell, await chaos.revisions(jobs[0]), seconds)


async def _wait_until_stopped(chaos: ChaosInstallation, step: CrashStep, cell: CrashCell) -> int:
    """Return the pid of the process that has stopped at the step."""

    async def stands() -> int | None:
        pid = chaos.process(step.process).pid
        return pid if chaos.faults(step.process).reached(step.point, cell.moment, pid) else None

    try:
        return int(await wait_for(stands, timeout_s=REACH_TIMEOUT_S, interval_s=0.01))
    except TimeoutError:
        raise AssertionError(f"{cell.name}: {step.point} was not reached in {REACH_TIMEOUT_S:g} s") from None


@asynccontextmanager
async def run_stage(
    folder: Path, docker: OwnDockerEngine | None = None, *, switched: bool = False
) -> AsyncIterator[ChaosInstallation]:
    """Run an installation with a runner, or with a switched host that starts its runner."""
    if switched:
        declare_host(folder)
    async with run_chaos_installation(folder, docker) as chaos:
        if switched:
            async with run_host(chaos):
                yield chaos
        else:
            await chaos.start_runner()
            yield chaos
