"""`--until-idle`: the runner ends by itself when it has nothing to do, and never while it has."""

from pathlib import Path
from typing import Any

import anyio
import pytest

from schemas.job import Status
from tests.support.runner_environment import RunnerEnvironment, RunnerUnderTest, wait_with_deadline
from tests.support.wait import wait_for

IDLE_S = 0.6
HEARTBEATS = 60  # at 0.02 s each: twice the idle time


@pytest.fixture
def world(tmp_path: Path) -> RunnerEnvironment:
    made = RunnerEnvironment(tmp_path)
    made.until_idle_s = IDLE_S
    return made


async def outlive_the_idle_time(world: RunnerEnvironment, running: RunnerUnderTest) -> None:
    """Wait for heartbeats over several idle times; fail if the runner has ended."""
    seen: set[int] = set()

    async def beats() -> bool:
        row = await world.edge.heartbeats.get("gpu-1")
        assert row is not None
        seen.add(row.revision)
        return len(seen) > HEARTBEATS

    await wait_for(beats)
    assert not running.stop.is_set()


async def test_a_runner_without_work_ends_and_takes_its_heartbeat_back(world: RunnerEnvironment):
    async with world.run_runner() as running:
        await wait_with_deadline(running.gone.wait)
    assert await world.edge.heartbeats.get("gpu-1") is None


async def test_a_running_job_keeps_it_until_the_job_has_ended(world: RunnerEnvironment):
    key = await world.submit("waits")
    async with world.run_runner() as running:
        await world.wait_until_running(key)
        await outlive_the_idle_time(world, running)
        await world.cancel(key)
        assert (await world.wait_until_ended(key)).status is Status.CANCELLED
        await wait_with_deadline(running.gone.wait)


async def test_a_job_that_is_being_claimed_keeps_it(world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch):
    claiming, go = anyio.Event(), anyio.Event()
    async with world.run_runner() as running:
        update = running.bus.job_store.update

        async def update_later(*args: Any) -> int:
            claiming.set()
            await go.wait()
            return await update(*args)

        monkeypatch.setattr(running.bus.job_store, "update", update_later)
        key = await world.submit("well")
        await wait_with_deadline(claiming.wait)
        await outlive_the_idle_time(world, running)
        go.set()
        assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED
        await wait_with_deadline(running.gone.wait)


async def test_a_result_that_is_being_delivered_keeps_it(world: RunnerEnvironment):
    world.assets.away = True
    key = await world.submit("well")
    async with world.run_runner() as running:
        await world.assets.asked.wait()
        await outlive_the_idle_time(world, running)
        world.assets.away = False
        assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED
        await wait_with_deadline(running.gone.wait)


async def test_no_job_is_left_half_way(world: RunnerEnvironment):
    keys = [await world.submit("well", id_=f"j{number}") for number in range(5)]
    async with world.run_runner() as running:
        for key in keys:
            await world.wait_until_ended(key)
        await wait_with_deadline(running.gone.wait)
    assert not world.boxes
    assert not await world.edge.job_queue.list_pending()


async def test_it_ends_while_the_broker_is_away(world: RunnerEnvironment):
    """A rented machine is given back also then; a job that waits is not lost."""
    async with world.run_runner() as running:
        world.broker.stop()
        await wait_with_deadline(running.stop.wait)
