"""Pauses at the runner: nothing paused is claimed, running jobs end, and the host says why jobs wait."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from schemas.host import HostHeartbeat
from schemas.installation import Pause, endpoint_pause_key, maintenance_key
from schemas.job import Status
from tests.support.runner_environment import RunnerEnvironment
from tests.support.wait import wait_for

NOW = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.fixture
def world(tmp_path: Path) -> RunnerEnvironment:
    return RunnerEnvironment(tmp_path)


async def heartbeat(world: RunnerEnvironment) -> HostHeartbeat | None:
    row = await world.edge.heartbeats.get("gpu-1")
    return row.value if row else None


@pytest.mark.parametrize(
    ("key", "reason", "paused"),
    [
        (endpoint_pause_key("well"), "endpoint_paused", {"well"}),
        (maintenance_key("gpu-1"), "host_in_maintenance", None),
    ],
)
async def test_a_new_runner_reads_the_pauses_before_it_claims(
    world: RunnerEnvironment, key: str, reason: str, paused: set[str] | None
) -> None:
    await world.edge.pauses.put(key, Pause(NOW, "ops"))
    world.programs["other"] = world.programs["well"]
    job = await world.submit("well")

    async def tells_why() -> bool:
        beat = await heartbeat(world)
        return beat is not None and reason in beat.unschedulable.values()

    async with world.run_runner():
        await wait_for(tells_why)
        beat = await heartbeat(world)
        assert beat is not None
        told = {name for name, why in beat.unschedulable.items() if why == reason}
        assert told == (paused or set(beat.unschedulable))
        assert not beat.draining
        assert (await world.job(job)).status is Status.QUEUED
        if paused:
            other = await world.submit("other", "j2")
            assert (await world.wait_until_ended(other)).status is Status.SUCCEEDED
            assert (await world.job(job)).status is Status.QUEUED
        await world.edge.pauses.delete(key)
        assert (await world.wait_until_ended(job)).status is Status.SUCCEEDED


async def test_a_pause_of_others_changes_nothing(world: RunnerEnvironment) -> None:
    await world.edge.pauses.put(maintenance_key("gpu-2"), Pause(NOW))
    await world.edge.pauses.put(endpoint_pause_key("other"), Pause(NOW))
    async with world.run_runner():
        assert (await world.wait_until_ended(await world.submit("well"))).status is Status.SUCCEEDED


@pytest.mark.parametrize("key", [endpoint_pause_key("waits"), maintenance_key("gpu-1")])
async def test_what_runs_goes_on(world: RunnerEnvironment, key: str) -> None:
    job = await world.submit("waits")

    async def is_known() -> bool:
        beat = await heartbeat(world)
        return beat is not None and bool(beat.unschedulable.get("waits"))

    async with world.run_runner():
        await world.wait_for_container()
        await world.edge.pauses.put(key, Pause(NOW))
        await wait_for(is_known)
        assert (await world.job(job)).status is Status.RUNNING
