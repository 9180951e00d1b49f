"""An engine that does not answer is waited for: nothing is claimed, the host says so, and goes on by itself."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from runner.engines.port import EngineGone, Spec
from schemas.host import Presence
from schemas.words import Status
from tests.broker import until
from tests.runner.warmed import kind, warm
from tests.runner.world import World, well, within


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def told(world: World, *, away: bool) -> Presence:
    """The host's word once it says that its engine is away, or there."""
    said: list[Presence] = []

    async def says() -> bool:
        row = await world.edge.hosts.get("gpu-1")
        if row is not None and (row.value.engine_away is not None) == away:
            said.append(row.value)
        return bool(said)

    await until(says)
    return said[-1]


async def beaten(world: World) -> None:
    """Wait for the host's next word."""
    before = await world.edge.hosts.get("gpu-1")

    async def other() -> bool:
        return await world.edge.hosts.get("gpu-1") != before

    await until(other)


async def test_an_engine_that_is_away_at_the_start_is_waited_for(world: World) -> None:
    world.engine_gone = True
    key = await world.submit("well")
    async with world.life() as running:
        seen = await told(world, away=True)
        assert (set(seen.cannot.values()), seen.running, seen.busy.unsaved) == ({"engine_away"}, (), 1)
        assert (await world.facts(key), running.ready.is_set()) == (["Submitted"], False)
        running.engine.gone = False
        assert (await world.ended(key)).status is Status.SUCCEEDED
        assert (await told(world, away=False)).cannot == {}


async def test_what_an_earlier_life_left_is_given_back_once_the_engine_answers(world: World) -> None:
    key = await world.submit("waits")
    async with world.life("i1"):
        await world.running(key)
        await world.boxed()
    world.engine_gone = True
    async with world.life("i2") as running:
        await told(world, away=True)
        assert await world.facts(key) == ["Submitted", "Started"]
        running.engine.gone = False

        async def looked_at() -> bool:
            return len(await world.facts(key)) > 2

        await until(looked_at)


async def test_while_it_is_away_nothing_is_claimed_and_jobs_wait_in_the_queue(world: World) -> None:
    async with world.life() as running:
        running.engine.gone = True
        await told(world, away=True)
        key = await world.submit("well")
        claims, take = list[str](), running.bus.queue.take

        async def counted(*lane: object) -> object:
            claims.append(str(lane))
            return await take(*lane)  # type: ignore[arg-type]

        running.bus.queue.take = counted  # type: ignore[method-assign, assignment]
        for _ in range(5):
            await beaten(world)
        assert (claims, await world.facts(key)) == ([], ["Submitted"])
        running.engine.gone = False
        assert (await world.ended(key)).status is Status.SUCCEEDED


async def test_a_start_that_goes_unanswered_is_noticed_at_once_and_costs_no_attempt(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.pace = replace(world.pace, engine_s=3600.0)  # by itself nobody would look
    async with world.life() as running:

        async def unanswered(_: Spec) -> str:
            running.engine.gone = True
            raise EngineGone("the socket is closed")

        monkeypatch.setattr(running.engine, "start", unanswered)
        key = await world.submit("well")
        await told(world, away=True)
        monkeypatch.undo()
        running.engine.gone = False
        job = await world.ended(key)
    assert (job.status, job.charged, job.releases) == (Status.SUCCEEDED, 0, {"engine_error": 1})


async def test_a_runner_can_be_stopped_while_its_engine_is_away(world: World) -> None:
    """It does not say goodbye: what earlier lives left there may be running."""
    world.engine_gone = True
    async with world.life() as running:
        await told(world, away=True)
        await running.drained()
        assert await world.edge.hosts.get("gpu-1") is not None


async def test_a_running_job_is_left_to_the_next_life(world: World) -> None:
    key = await world.submit("waits")
    async with world.life() as running:
        await world.running(key)
        await world.boxed()
        running.engine.gone = True
        await told(world, away=True)
        await running.drained()
    assert (await world.job(key)).status is Status.RUNNING


async def test_a_drain_does_not_wait_for_what_cannot_be_removed(world: World) -> None:
    world.programs = {"echo": warm(well)}
    world.kinds = {"echo": kind("echo", world.folder)}
    async with world.life() as running:
        await world.waiting("echo")
        running.engine.gone = True
        await told(world, away=True)
        await within(running.drained)


async def test_the_claim_names_the_engine(world: World) -> None:
    async with world.life():
        job = await world.ended(await world.submit("well"))
    assert job.claim is not None
    assert job.claim.engine == "memory"
