"""The edge's power law is obeyed: nothing new while the host is put out, and it goes dark only when it is empty."""

import os
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest
import structlog
from structlog.testing import capture_logs

from runner.engines.memory import Box
from runner.poweroff import power_off
from schemas.host import Busy
from schemas.power import PowerRecord, PowerState
from schemas.words import Status
from tests.broker import until
from tests.runner.world import World, out

NOW = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def order(world: World, state: PowerState, *, own_poweroff: bool = False) -> None:
    await world.edge.power.put("gpu-1", PowerRecord(state=state, since=NOW, own_poweroff=own_poweroff))


async def draining(world: World) -> bool:
    row = await world.edge.hosts.get("gpu-1")
    return row is not None and row.value.draining


async def test_a_new_life_reads_its_order_before_it_claims(world: World) -> None:
    await order(world, PowerState.DRAINING)
    key = await world.submit("well")
    async with world.life():
        await until(lambda: draining(world))
        assert (await world.job(key)).status is Status.QUEUED
        row = await world.edge.hosts.get("gpu-1")
        assert row is not None
        assert set(row.value.cannot.values()) == {"paused"}
        await order(world, PowerState.ONLINE)
        assert (await world.ended(key)).status is Status.SUCCEEDED
        assert not await draining(world)


async def test_what_runs_goes_on_while_the_host_is_put_out(world: World) -> None:
    key = await world.submit("waits")
    async with world.life():
        await world.boxed()
        await order(world, PowerState.DRAINING)
        await until(lambda: draining(world))
        assert (await world.job(key)).status is Status.RUNNING


async def test_the_program_inherits_none_of_the_runners_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMPLIGHTER_BROKER__PASSWORD", "secret")
    written = tmp_path / "environ"
    await power_off(("sh", "-c", f"env > {written}"), structlog.get_logger("test"))
    given = (await anyio.Path(written).read_text()).splitlines()
    assert not [line for line in given if line.startswith("LAMPLIGHTER_")]
    assert f"PATH={os.environ['PATH']}" in given


@pytest.mark.parametrize("program", [("/no/such/program",), ("false",)])
async def test_a_program_that_switches_nothing_off_ends_no_runner(world: World, program: tuple[str, ...]) -> None:
    world.poweroff = program
    await order(world, PowerState.STOPPING, own_poweroff=True)
    with capture_logs() as said:

        async def tried_again() -> bool:
            return sum(line["event"] == "powering_off" for line in said) > 1

        async with world.life():
            await until(tried_again)
            await order(world, PowerState.ONLINE)
            assert (await world.ended(await world.submit("well"))).status is Status.SUCCEEDED
    assert any("correct `poweroff`" in line["event"] for line in said)


async def test_the_machine_is_switched_off_only_when_nothing_is_left(world: World, tmp_path: Path) -> None:
    dark = tmp_path / "dark"
    world.poweroff = ("touch", str(dark))
    finish = anyio.Event()

    async def gated(box: Box) -> int:
        await finish.wait()
        out(box)
        return 0

    world.programs["gated"] = gated
    key = await world.submit("gated")
    async with world.life():
        await world.boxed()
        await order(world, PowerState.STOPPING, own_poweroff=True)
        await until(lambda: draining(world))
        assert not dark.exists()
        finish.set()
        await world.ended(key)

        async def switched_off() -> bool:
            return dark.exists()

        await until(switched_off)


async def test_the_heartbeat_tells_what_else_keeps_the_host_busy(world: World) -> None:
    """People from before the first claim, an upload that does not end, and nothing any more when it has."""
    world.people = frozenset({"ann", "bob"})
    world.shop.away = True
    key = await world.submit("well")

    async def busy(expected: Busy) -> None:
        async def told() -> bool:
            row = await world.edge.hosts.get("gpu-1")
            return row is not None and row.value.busy == expected

        await until(told)

    async with world.life():
        await busy(Busy(uploading=1, users=2))
        world.shop.away = False
        await world.ended(key)
        world.people = frozenset()
        await busy(Busy())
