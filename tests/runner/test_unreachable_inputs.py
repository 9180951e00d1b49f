"""A job whose inputs cannot be fetched: its progress and its host's heartbeat show the reason."""

from pathlib import Path

import anyio
import pytest

from runner.execution import job_files
from schemas.events import ProgressMessage
from schemas.job import JobKey, Status
from tests.support.runner_environment import RunnerEnvironment
from tests.support.wait import wait_for

AWAY = "fetching input: the edge is away: the test said so"


@pytest.fixture
def world(tmp_path: Path) -> RunnerEnvironment:
    return RunnerEnvironment(tmp_path)


async def stages(world: RunnerEnvironment, key: JobKey) -> list[str | None]:
    return [note.stage for note in await world.notes(key) if isinstance(note, ProgressMessage)]


async def test_what_keeps_the_inputs_is_reported_and_that_they_came(world: RunnerEnvironment) -> None:
    world.assets.away = True
    key = await world.submit("well", input={"file": world.assets.add(b"content")})
    async with world.run_runner():

        async def told() -> bool:
            row = await world.edge.heartbeats.get("gpu-1")
            waits = row.value.blocked_work if row else ()
            return waits == ("fetch input: the edge is away: the test said so",) and await stages(world, key) == [AWAY]

        await wait_for(told)
        world.assets.away = False
        assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED

        async def over() -> bool:
            row = await world.edge.heartbeats.get("gpu-1")
            return row is not None and row.value.blocked_work == ()

        await wait_for(over)
    assert (await stages(world, key))[:2] == [AWAY, "starting"]
    notes = [note for note in await world.notes(key) if isinstance(note, ProgressMessage)]
    offsets = [note.position.offset for note in notes]
    assert offsets == sorted(set(offsets))
    assert notes[0].fraction == 0.0


async def test_a_fetch_that_takes_long_is_reported(world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_files, "FETCH_PROGRESS_DELAY_S", 0.02)
    stage, held = world.assets.stage, anyio.Event()

    async def slowly(owner: str, sha256: str, to: Path) -> None:
        await held.wait()
        await stage(owner, sha256, to)

    monkeypatch.setattr(world.assets, "stage", slowly)
    key = await world.submit("well", input={"file": world.assets.add(b"content")})
    async with world.run_runner():

        async def told() -> bool:
            return await stages(world, key) == ["fetching input"]

        await wait_for(told)
        held.set()
        assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED
    assert (await stages(world, key))[:2] == ["fetching input", "starting"]


async def test_a_fetch_that_is_quick_is_not_reported(world: RunnerEnvironment) -> None:
    key = await world.submit("well", input={"file": world.assets.add(b"content")})
    async with world.run_runner():
        assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED
    assert set(await stages(world, key)) == {None}


async def test_a_job_is_cancelled_while_its_inputs_are_awaited(world: RunnerEnvironment) -> None:
    world.assets.away = True
    key = await world.submit("well", input={"file": world.assets.add(b"content")})
    async with world.run_runner():

        async def told() -> bool:
            return await stages(world, key) == [AWAY]

        await wait_for(told)
        await world.cancel(key)
        assert (await world.wait_until_ended(key)).status is Status.CANCELLED
