"""While the slots are busy the next job's inputs come; its message and its record stay as they are."""

from pathlib import Path

import anyio
import pytest

from runner.engines.memory import Box
from schemas.words import Status
from tests.broker import until
from tests.runner.world import World, out, within


class Held:
    """The first job waits to be let go; the others do well."""

    def __init__(self) -> None:
        self.go = anyio.Event()

    async def __call__(self, box: Box) -> int:
        if box.spec.identity.job == "j1":
            await self.go.wait()
        out(box)
        return 0


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_the_next_jobs_inputs_come_while_the_first_runs(world: World) -> None:
    held = world.programs["held"] = Held()
    async with world.life():
        first = await world.submit("held")
        await world.running(first)
        asset = world.shop.add(b"given")
        second = await world.submit("held", "j2", input={"file": asset})

        async def fetched() -> bool:
            return world.shop.fetched == [asset.removeprefix("sha256:")]

        await until(fetched)
        assert await world.facts(second) == ["Submitted"]
        held.go.set()
        job = await world.ended(second)
    assert (job.status, job.attempt) == (Status.SUCCEEDED, 1)


async def test_what_cannot_be_fetched_ahead_is_the_jobs_own_affair(world: World) -> None:
    held = world.programs["held"] = Held()
    async with world.life():
        first = await world.submit("held")
        await world.running(first)
        second = await world.submit("held", "j2", input={"file": f"sha256:{'0' * 64}"})

        async def tried() -> bool:
            return bool(world.shop.fetched)

        await until(tried)
        held.go.set()
        assert (await world.ended(first)).status is Status.SUCCEEDED
        job = await world.ended(second)
    assert job.error is not None
    assert job.error.code == "asset_gone"


async def test_a_drain_does_not_wait_for_what_is_fetched_ahead(world: World) -> None:
    world.programs["held"] = Held()
    async with world.life() as life:
        await world.running(await world.submit("held"))
        await within(life.drained)
    assert world.shop.fetched == []
