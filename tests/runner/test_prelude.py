"""A job whose inputs cannot be fetched says so: in its progress, and in what its host waits for."""

from pathlib import Path

import pytest

from runner import prelude
from schemas.feed import ProgressNote
from schemas.job import JobKey
from schemas.words import Status
from tests.broker import until
from tests.runner.world import World

AWAY = "fetching input: the edge is away: the test said so"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def stages(world: World, key: JobKey) -> list[str | None]:
    return [note.stage for note in await world.notes(key) if isinstance(note, ProgressNote)]


async def test_what_keeps_the_inputs_is_told_and_that_they_came(world: World) -> None:
    world.shop.away = True
    key = await world.submit("well", input={"file": world.shop.add(b"content")})
    async with world.life():

        async def told() -> bool:
            row = await world.edge.hosts.get("gpu-1")
            waits = row.value.waits if row else ()
            return waits == ("fetch input: the edge is away: the test said so",) and await stages(world, key) == [AWAY]

        await until(told)
        world.shop.away = False
        assert (await world.ended(key)).status is Status.SUCCEEDED

        async def over() -> bool:
            row = await world.edge.hosts.get("gpu-1")
            return row is not None and row.value.waits == ()

        await until(over)
    assert (await stages(world, key))[:2] == [AWAY, "starting"]
    notes = [note for note in await world.notes(key) if isinstance(note, ProgressNote)]
    offsets = [note.place.offset for note in notes]
    assert offsets == sorted(set(offsets))
    assert notes[0].fraction == 0.0


async def test_a_fetch_that_takes_long_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prelude, "PATIENCE_S", 0.02)
    stage, held = world.shop.stage, prelude.anyio.Event()

    async def slowly(owner: str, sha256: str, to: Path) -> None:
        await held.wait()
        await stage(owner, sha256, to)

    monkeypatch.setattr(world.shop, "stage", slowly)
    key = await world.submit("well", input={"file": world.shop.add(b"content")})
    async with world.life():

        async def told() -> bool:
            return await stages(world, key) == ["fetching input"]

        await until(told)
        held.set()
        assert (await world.ended(key)).status is Status.SUCCEEDED
    assert (await stages(world, key))[:2] == ["fetching input", "starting"]


async def test_a_fetch_that_is_quick_is_not_told(world: World) -> None:
    key = await world.submit("well", input={"file": world.shop.add(b"content")})
    async with world.life():
        assert (await world.ended(key)).status is Status.SUCCEEDED
    assert set(await stages(world, key)) == {None}


async def test_a_job_is_cancelled_while_its_inputs_are_awaited(world: World) -> None:
    world.shop.away = True
    key = await world.submit("well", input={"file": world.shop.add(b"content")})
    async with world.life():

        async def told() -> bool:
            return await stages(world, key) == [AWAY]

        await until(told)
        await world.cancel(key)
        assert (await world.ended(key)).status is Status.CANCELLED
