"""The edge's power orders: a paused host claims nothing, and powers off only when it is empty."""

import os
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest
import structlog
from structlog.testing import capture_logs

from runner.host.presence import power_off
from schemas.host import ActivityCounts
from schemas.job import Status
from schemas.power import PowerRecord, PowerState
from tests.support.fake_engine import FakeContainer
from tests.support.runner_environment import RunnerEnvironment, write_outputs
from tests.support.wait import wait_for

NOW = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.fixture
def world(tmp_path: Path) -> RunnerEnvironment:
    return RunnerEnvironment(tmp_path)


async def order(world: RunnerEnvironment, state: PowerState, *, own_poweroff: bool = False) -> None:
    await world.edge.power_records.put("gpu-1", PowerRecord(state=state, since=NOW, runner_powers_off=own_poweroff))


async def draining(world: RunnerEnvironment) -> bool:
    row = await world.edge.heartbeats.get("gpu-1")
    return row is not None and row.value.draining


async def test_a_new_life_reads_its_order_before_it_claims(world: RunnerEnvironment) -> None:
    await order(world, PowerState.DRAINING)
    key = await world.submit("well")
    async with world.run_runner():
        await wait_for(lambda: draining(world))
        assert (await world.job(key)).status is Status.QUEUED
        row = await world.edge.heartbeats.get("gpu-1")
        assert row is not None
        assert set(row.value.unschedulable.values()) == {"paused"}
        await order(world, PowerState.ONLINE)
        assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED
        assert not await draining(world)


async def test_what_runs_goes_on_while_the_host_is_put_out(world: RunnerEnvironment) -> None:
    key = await world.submit("waits")
    async with world.run_runner():
        await world.wait_for_container()
        await order(world, PowerState.DRAINING)
        await wait_for(lambda: draining(world))
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
async def test_a_program_that_switches_nothing_off_ends_no_runner(
    world: RunnerEnvironment, program: tuple[str, ...]
) -> None:
    world.poweroff = program
    await order(world, PowerState.STOPPING, own_poweroff=True)
    with capture_logs() as said:

        async def tried_again() -> bool:
            return sum(line["event"] == "power_off_started" for line in said) > 1

        async with world.run_runner():
            await wait_for(tried_again)
            await order(world, PowerState.ONLINE)
            assert (await world.wait_until_ended(await world.submit("well"))).status is Status.SUCCEEDED
    assert any(line["event"] == "power_off_failed" and "correct `poweroff`" in line["remedy"] for line in said)


async def test_the_machine_is_switched_off_only_when_nothing_is_left(world: RunnerEnvironment, tmp_path: Path) -> None:
    dark = tmp_path / "dark"
    world.poweroff = ("touch", str(dark))
    finish = anyio.Event()

    async def gated(box: FakeContainer) -> int:
        await finish.wait()
        write_outputs(box)
        return 0

    world.programs["gated"] = gated
    key = await world.submit("gated")
    async with world.run_runner():
        await world.wait_for_container()
        await order(world, PowerState.STOPPING, own_poweroff=True)
        await wait_for(lambda: draining(world))
        assert not dark.exists()
        finish.set()
        await world.wait_until_ended(key)

        async def switched_off() -> bool:
            return dark.exists()

        await wait_for(switched_off)


async def test_the_heartbeat_tells_what_else_keeps_the_host_busy(world: RunnerEnvironment) -> None:
    """Check the activity: users from before the first claim, and an upload until it has ended."""
    world.people = frozenset({"ann", "bob"})
    world.assets.away = True
    key = await world.submit("well")

    async def busy(expected: ActivityCounts) -> None:
        async def told() -> bool:
            row = await world.edge.heartbeats.get("gpu-1")
            return row is not None and row.value.activity == expected

        await wait_for(told)

    async with world.run_runner():
        await busy(ActivityCounts(uploading=1, users=2))
        world.assets.away = False
        await world.wait_until_ended(key)
        world.people = frozenset()
        await busy(ActivityCounts())
