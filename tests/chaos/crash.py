"""Playing cells of the matrix: a process stands still at the step, the victim is killed, and life goes on."""

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from msgspec import Struct

from tests.chaos.engines import OwnEngine
from tests.chaos.evidence import Revision
from tests.chaos.machine import declare, plugged_in
from tests.chaos.scene import Scene, resume, staged
from tests.chaos.steps import STEPS, Cell, Step
from tests.chaos.victims import VICTIMS
from tests.e2e.installation import until

REACHED_S = 180.0  # a host is put out and lit only after a while
OVER_S = 150.0

BY_NAME: Mapping[str, Step] = {step.name: step for step in STEPS}


class Outcome(Struct, frozen=True):
    """What became of the job: its events behind `submitted`, and the seconds from the kill to the end of the play."""

    cell: Cell
    history: tuple[Revision, ...]
    seconds: float

    @property
    def told(self) -> str:
        """In a table's words."""
        return " → ".join(revision.event for revision in self.history[1:])


async def play(scene: Scene, cell: Cell) -> Outcome:
    """One cell. TimeoutError says where: the point was never reached, or the job never ended."""
    step, victim = BY_NAME[cell.step], VICTIMS[cell.victim]
    jobs: list[str] = []
    over = anyio.Event()
    async with scene.client(cell.name) as client, anyio.create_task_group() as tasks:
        scene.faults(step.process).arm(step.point, cell.moment)

        async def played() -> None:
            jobs.append(await step.play(scene, client, cell))
            over.set()

        tasks.start_soon(played)
        pid = await _reached(scene, step, cell)
        began = time.monotonic()
        await victim.kill(scene)
        if victim.frozen != step.process:
            resume(pid)
        if not (step.switched and victim.frozen == "runner"):  # there the machine does
            await victim.revive(scene)
        with anyio.move_on_after(OVER_S) as late:
            await over.wait()
        assert not late.cancelled_caught, f"{cell.name}: not over after {OVER_S:g} s"
    seconds = time.monotonic() - began
    await scene.settled()
    return Outcome(cell, await scene.revisions(jobs[0]), seconds)


async def _reached(scene: Scene, step: Step, cell: Cell) -> int:
    """The pid of the process that stands at the step."""

    async def stands() -> int | None:
        pid = scene.process(step.process).pid
        return pid if scene.faults(step.process).reached(step.point, cell.moment, pid) else None

    try:
        return int(await until(stands, REACHED_S, every_s=0.01))
    except TimeoutError:
        raise AssertionError(f"{cell.name}: {step.point} was not reached in {REACHED_S:g} s") from None


@asynccontextmanager
async def stage(folder: Path, docker: OwnEngine | None = None, *, switched: bool = False) -> AsyncIterator[Scene]:
    """A scene with a runner, or with a machine that has one."""
    if switched:
        declare(folder)
    async with staged(folder, docker) as scene:
        if switched:
            async with plugged_in(scene):
                yield scene
        else:
            await scene.start_runner()
            yield scene
