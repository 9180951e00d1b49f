"""Prefetch while the slots are busy: the next job's inputs arrive, its message and its record stay as they are."""

from pathlib import Path

import anyio
import pytest

from schemas.status import Status
from tests.support.fake_engine import FakeContainer
from tests.support.runner_environment import RunnerEnvironment, wait_with_deadline, write_outputs
from tests.support.wait import wait_for


class HeldFetch:
    """Program whose first job waits until it is released; the others succeed."""

    def __init__(self) -> None:
        self.go = anyio.Event()

    async def __call__(self, box: FakeContainer) -> int:
        if box.spec.identity.job == "j1":
            await self.go.wait()
        write_outputs(box)
        return 0


@pytest.fixture
def world(tmp_path: Path) -> RunnerEnvironment:
    return RunnerEnvironment(tmp_path)


async def test_the_next_jobs_inputs_come_while_the_first_runs(world: RunnerEnvironment) -> None:
    held = world.programs["held"] = HeldFetch()
    async with world.run_runner():
        first = await world.submit("held")
        await world.wait_until_running(first)
        asset = world.assets.add(b"given")
        second = await world.submit("held", "j2", input={"file": asset})

        async def fetched() -> bool:
            return world.assets.fetched == [asset.removeprefix("sha256:")]

        await wait_for(fetched)
        assert await world.event_types(second) == ["Submitted"]
        held.go.set()
        job = await world.wait_until_ended(second)
    assert (job.status, job.attempt) == (Status.SUCCEEDED, 1)


async def test_what_cannot_be_fetched_ahead_is_the_jobs_own_affair(world: RunnerEnvironment) -> None:
    held = world.programs["held"] = HeldFetch()
    async with world.run_runner():
        first = await world.submit("held")
        await world.wait_until_running(first)
        second = await world.submit("held", "j2", input={"file": f"sha256:{'0' * 64}"})

        async def tried() -> bool:
            return bool(world.assets.fetched)

        await wait_for(tried)
        held.go.set()
        assert (await world.wait_until_ended(first)).status is Status.SUCCEEDED
        job = await world.wait_until_ended(second)
    assert job.error is not None
    assert job.error.code == "asset_gone"


async def test_a_drain_does_not_wait_for_what_is_fetched_ahead(world: RunnerEnvironment) -> None:
    world.programs["held"] = HeldFetch()
    async with world.run_runner() as runner:
        await world.wait_until_running(await world.submit("held"))
        await wait_with_deadline(runner.drained)
    assert world.assets.fetched == []
