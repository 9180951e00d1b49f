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
    def format_row(self) -> str:
        """In a table's words."""
        return " → ".join(revision.event for revision in self.history[1:])


async def play_cell(scene: ChaosInstallation, cell: CrashCell) -> CellOutcome:
    """Play one cell. Raises AssertionError when the point is not reached or the job does not end."""
    step, victim = BY_NAME[cell.step], KILL_TARGETS[cell.victim]
    jobs: list[str] = []
    over = anyio.Event()
    async with scene.client(cell.name) as client, anyio.create_task_group() as tasks:
        scene.faults(step.process).arm(step.point, cell.moment)

        async def played() -> None:
            jobs.append(await step.play(scene, client, cell))
            over.set()

        tasks.start_soon(played)
        pid = await _wait_until_stopped(scene, step, cell)
        began = time.monotonic()
        await victim.kill(scene)
        if victim.frozen != step.process:
            continue_process(pid)
        if not (step.switched and victim.frozen == "runner"):  # there the host itself restarts its runner
            await victim.revive(scene)
        with anyio.move_on_after(CELL_TIMEOUT_S) as late:
            await over.wait()
        assert not late.cancelled_caught, f"{cell.name}: not over after {CELL_TIMEOUT_S:g} s"
    seconds = time.monotonic() - began
    await scene.wait_until_clean()
    return CellOutcome(cell, await scene.revisions(jobs[0]), seconds)


async def _wait_until_stopped(scene: ChaosInstallation, step: CrashStep, cell: CrashCell) -> int:
    """Return the pid of the process that has stopped at the step."""

    async def stands() -> int | None:
        pid = scene.process(step.process).pid
        return pid if scene.faults(step.process).reached(step.point, cell.moment, pid) else None

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
    async with run_chaos_installation(folder, docker) as scene:
        if switched:
            async with run_host(scene):
                yield scene
        else:
            await scene.start_runner()
            yield scene
