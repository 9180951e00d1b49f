"""Every kind of leftover is found: each check can fail."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio

from runner.engines.port import ContainerIdentity, ContainerLimits, ContainerSpec
from schemas.job import Pointer, Priority
from tests.chaos.chaos_installation import ChaosInstallation, continue_process, run_chaos_installation
from tests.chaos.leftovers import LEFTOVER_CHECKS, find_leftovers
from tests.support.installation import HOST
from tests.support.wait import wait_for


async def start_a_job(chaos: ChaosInstallation) -> None:
    """Start a container of a job that has no record."""
    folder = chaos.installation.folder / HOST
    mine = ContainerIdentity(installation=chaos.installation.name, host=HOST, owner="ann", job="j", round=1, attempt=1)
    spec = ContainerSpec(
        identity=mine,
        image="none",
        folder=str(folder),
        command=("sleep", "600"),
        job_dir=folder / "jobs" / mine.folder / "job",
        limits=ContainerLimits(128, 1.0),
    )
    async with chaos.installation.engine_of(HOST) as engine:
        await engine.start(spec)


@asynccontextmanager
async def untidy(chaos: ChaosInstallation) -> AsyncIterator[int]:
    """Leave one thing of every kind while the block runs; yield the pid of a foreign process."""
    await chaos.installation.runners[HOST].stop()
    await start_a_job(chaos)
    os.kill(chaos.installation.edge.pid, signal.SIGSTOP)  # it would clean up
    stranger = await anyio.open_process(["sleep", "600"], env={"FOLDER": str(chaos.installation.folder)})
    try:
        await chaos.bus.job_queue.publish(Pointer("stamped", Priority.LOW, "ann", "j", 1))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_follow, chaos)
            yield stranger.pid
            tasks.cancel_scope.cancel()
    finally:
        stranger.kill()
        continue_process(chaos.installation.edge.pid)


async def _follow(chaos: ChaosInstallation) -> None:
    async for item in chaos.bus.feed.follow("ann"):
        raise AssertionError(f"nothing was said, and {item} came")


async def test_everything_that_is_left_behind_is_found(tmp_path: Path):
    async with run_chaos_installation(tmp_path) as chaos:
        await chaos.start_runner()

        async def has_heartbeat() -> bool:
            return HOST in await chaos.bus.heartbeats.rows()

        async def kinds() -> set[str]:
            return {one.partition(":")[0] for one in await find_leftovers(chaos.installation, chaos.bus)}

        async def tidy() -> bool:
            return not await kinds()

        async def all_found() -> bool:
            return await kinds() == set(LEFTOVER_CHECKS)

        await wait_for(has_heartbeat, timeout_s=60)
        await wait_for(tidy, timeout_s=30)
        async with untidy(chaos) as stranger:
            with suppress(TimeoutError):
                await wait_for(all_found, timeout_s=20)
            assert await kinds() == set(LEFTOVER_CHECKS)
            found = "\n".join(await find_leftovers(chaos.installation, chaos.bus))
    for what in ("job.stamped.low.ann.j.1", f"{HOST}/jobs/ann.j.1.1", f"process {stranger}", "FEED: ["):
        assert what in found
