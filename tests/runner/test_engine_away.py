"""An engine that does not answer is waited for: nothing is claimed, the host reports it, and work goes on later."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from runner.engines.port import ContainerSpec, EngineUnavailable
from schemas.host import HostHeartbeat
from schemas.job import Status
from tests.runner.warm_programs import warm_endpoint, warm_program
from tests.support.runner_environment import RunnerEnvironment, succeed, wait_with_deadline
from tests.support.wait import wait_for


@pytest.fixture
def world(tmp_path: Path) -> RunnerEnvironment:
    return RunnerEnvironment(tmp_path)


async def told(world: RunnerEnvironment, *, away: bool) -> HostHeartbeat:
    """Return the heartbeat once it says that the engine is away, or that it answers."""
    said: list[HostHeartbeat] = []

    async def says() -> bool:
        row = await world.edge.heartbeats.get("gpu-1")
        if row is not None and (row.value.engine_away is not None) == away:
            said.append(row.value)
        return bool(said)

    await wait_for(says)
    return said[-1]


async def beaten(world: RunnerEnvironment) -> None:
    """Wait for the host's next heartbeat."""
    before = await world.edge.heartbeats.get("gpu-1")

    async def other() -> bool:
        return await world.edge.heartbeats.get("gpu-1") != before

    await wait_for(other)


async def test_an_engine_that_is_away_at_the_start_is_waited_for(world: RunnerEnvironment) -> None:
    world.engine_gone = True
    key = await world.submit("well")
    async with world.run_runner() as running:
        seen = await told(world, away=True)
        assert (set(seen.unschedulable.values()), seen.running, seen.activity.unrecovered) == ({"engine_away"}, (), 1)
        assert (await world.event_types(key), running.ready.is_set()) == (["Submitted"], False)
        running.engine.is_unavailable = False
        assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED
        assert (await told(world, away=False)).unschedulable == {}


async def test_what_an_earlier_life_left_is_given_back_once_the_engine_answers(world: RunnerEnvironment) -> None:
    key, _ = await world.kill_runner_during_job("waits")
    world.engine_gone = True
    async with world.run_runner("i2") as running:
        await told(world, away=True)
        assert await world.event_types(key) == ["Submitted", "Started"]
        running.engine.is_unavailable = False

        async def looked_at() -> bool:
            return len(await world.event_types(key)) > 2

        await wait_for(looked_at)


async def test_while_it_is_away_nothing_is_claimed_and_jobs_wait_in_the_queue(world: RunnerEnvironment) -> None:
    async with world.run_runner() as running:
        running.engine.is_unavailable = True
        await told(world, away=True)
        key = await world.submit("well")
        claims, take = list[str](), running.bus.job_queue.fetch

        async def counted(*lane: object) -> object:
            claims.append(str(lane))
            return await take(*lane)

        running.bus.job_queue.fetch = counted  # type: ignore[method-assign, assignment]
        for _ in range(5):
            await beaten(world)
        assert (claims, await world.event_types(key)) == ([], ["Submitted"])
        running.engine.is_unavailable = False
        assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED


async def test_a_start_that_goes_unanswered_is_noticed_at_once_and_costs_no_attempt(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.pace = replace(world.pace, engine_s=3600.0)  # by itself nobody would look
    async with world.run_runner() as running:

        async def unanswered(_: ContainerSpec) -> str:
            running.engine.is_unavailable = True
            raise EngineUnavailable("the socket is closed")

        monkeypatch.setattr(running.engine, "start", unanswered)
        key = await world.submit("well")
        await told(world, away=True)
        monkeypatch.undo()
        running.engine.is_unavailable = False
        job = await world.wait_until_ended(key)
    assert (job.status, job.charged_attempts, job.free_releases) == (Status.SUCCEEDED, 0, {"engine_error": 1})


async def test_a_container_whose_processes_cannot_be_looked_up_yet_is_kept(world: RunnerEnvironment) -> None:
    asked: list[str] = []

    async def look_up(handle: str) -> None:
        asked.append(handle)
        if len(asked) == 1:
            raise EngineUnavailable("the socket is closed")

    key = await world.submit("well")
    async with world.run_runner() as running:
        running.host.gpu_allocator.pid_of = look_up
        job = await world.wait_until_ended(key)
    assert (job.status, job.attempt, job.free_releases, len(asked)) == (Status.SUCCEEDED, 1, {}, 2)


async def test_a_runner_can_be_stopped_while_its_engine_is_away(world: RunnerEnvironment) -> None:
    """Check that the heartbeat is not deleted: containers of earlier runner processes may be running."""
    world.engine_gone = True
    async with world.run_runner() as running:
        await told(world, away=True)
        await running.drained()
        assert await world.edge.heartbeats.get("gpu-1") is not None


async def test_a_running_job_is_left_to_the_next_life(world: RunnerEnvironment) -> None:
    key = await world.submit("waits")
    async with world.run_runner() as running:
        await world.wait_until_running(key)
        await world.wait_for_container()
        running.engine.is_unavailable = True
        await told(world, away=True)
        await running.drained()
    assert (await world.job(key)).status is Status.RUNNING


async def test_a_drain_does_not_wait_for_what_cannot_be_removed(world: RunnerEnvironment) -> None:
    world.programs = {"echo": warm_program(succeed)}
    world.kinds = {"echo": warm_endpoint("echo", world.folder)}
    async with world.run_runner() as running:
        await world.wait_for_warm("echo")
        running.engine.is_unavailable = True
        await told(world, away=True)
        await wait_with_deadline(running.drained)


async def test_the_claim_names_the_engine(world: RunnerEnvironment) -> None:
    async with world.run_runner():
        job = await world.wait_until_ended(await world.submit("well"))
    assert job.claim is not None
    assert job.claim.engine == "memory"
