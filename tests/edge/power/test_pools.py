"""Scenes of the rule of pools over the fake bus: hosts fan out for a burst, and go off one after the other."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from schemas.host_config import PoolConfig
from schemas.job import Priority
from schemas.power import PowerState as S
from tests.edge.power.power_rig import HOST, PowerRig, run_power_rig

NAMES = ("gpu-1", "gpu-2", "gpu-3")
THREE = dict.fromkeys(NAMES, HOST)
WHY = "500 jobs wait in pool echo: fewer hosts cannot start them within 600 s"


async def states(made: PowerRig) -> dict[str, S]:
    return {host: (await made.record(host)).state for host in made.runners}


def calls(made: PowerRig) -> dict[str, list[str]]:
    return {host: [verb for verb, _ in driver.calls] for host, driver in made.drivers.items()}


async def submit(made: PowerRig, number: int, **given: Any) -> None:
    for _ in range(number):
        await made.edge.world.submit(**given)


async def run_all_jobs(made: PowerRig, hosts: Mapping[str, S]) -> None:
    """Finish all waiting jobs, and let all hosts be idle."""
    assert set(hosts.values()) == {S.ONLINE}
    while await made.edge.world.index.find_keys("status = 'queued' AND :at > 0", 1, 1):
        await made.run_all_jobs()
        await made.edge.world.wait_until_indexed()


@pytest.mark.parametrize("edges", [1, 2])
async def test_five_hundred_jobs_and_three_dark_hosts_are_three_starts_in_one_look(tmp_path: Path, edges: int) -> None:
    async with run_power_rig(tmp_path, THREE, edges=edges) as made:
        await submit(made, 500)
        for edge in made.edges:
            await edge.tick()
        assert calls(made) == {host: ["start"] for host in NAMES}
        assert set((await states(made)).values()) == {S.WAKING}
        for host in NAMES:
            assert (await made.record(host)).why == WHY
        await made.advance(60)
        assert set((await states(made)).values()) == {S.ONLINE}
        assert calls(made) == {host: ["start"] for host in NAMES}


async def test_a_few_jobs_wake_one_host_as_ever(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, THREE) as made:
        await submit(made, 5)
        await made.advance(60)
        assert await states(made) == {"gpu-1": S.ONLINE, "gpu-2": S.OFF, "gpu-3": S.OFF}


async def test_a_burst_beside_a_host_that_is_up_wakes_the_others(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, THREE) as made:
        await submit(made, 1)
        await made.wait_for_state(S.ONLINE)
        await submit(made, 499)
        await made.edge.tick()
        assert await states(made) == {"gpu-1": S.ONLINE, "gpu-2": S.WAKING, "gpu-3": S.WAKING}


async def test_low_jobs_wake_nobody_and_a_paused_endpoint_neither(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, THREE) as made:
        await submit(made, 200, priority=Priority.LOW)
        await made.advance(60)
        assert calls(made) == {host: [] for host in NAMES}
        await submit(made, 1)
        await made.advance(60)
        assert (await states(made))["gpu-2"] is S.OFF, "the low jobs do not make the one job a burst"


async def test_hosts_go_off_one_after_the_other_and_the_last_when_it_is_idle(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, THREE, pools={"echo": PoolConfig(cool_down_s=60.0)}) as made:
        await submit(made, 40)
        await made.advance(60)
        await run_all_jobs(made, await states(made))
        made.runners["gpu-2"].work = [await made.edge.world.submit()]
        await made.edge.world.wait_until_indexed()
        await made.run_all_jobs()
        await made.advance(540)
        assert set((await states(made)).values()) == {S.ONLINE}, "min_on"
        for host in ("gpu-1", "gpu-3"):
            await made.wait_for_state(S.OFF, host, within_s=180)
            assert [change.why for change in (await made.record(host)).history][2] == "its pools need fewer hosts"
        assert (await made.record("gpu-2")).state is S.ONLINE
        made.runners["gpu-2"].work = []
        await made.wait_for_state(S.OFF, "gpu-2", within_s=1200)
        assert [change.why for change in (await made.record("gpu-2")).history][2] == "nothing to do"


async def test_a_released_host_is_stopped_although_a_job_waits(tmp_path: Path) -> None:
    """A job waits at every look, as in a pool that is always in use; the other host starts it in time."""
    rules = {"echo": PoolConfig(cool_down_s=60.0)}
    async with run_power_rig(tmp_path, {"gpu-1": HOST, "gpu-2": HOST}, pools=rules) as made:
        await submit(made, 40)
        await made.advance(60)
        await run_all_jobs(made, await states(made))
        await submit(made, 1)
        await made.wait_for_state(S.OFF, "gpu-2", within_s=1200)
        await made.advance(1200)
        assert await states(made) == {"gpu-1": S.ONLINE, "gpu-2": S.OFF}


async def test_a_burst_takes_a_draining_host_back(tmp_path: Path) -> None:
    rules = {"echo": PoolConfig(cool_down_s=60.0)}
    async with run_power_rig(tmp_path, {"gpu-1": HOST, "gpu-2": HOST}, pools=rules) as made:
        await submit(made, 40)
        await made.advance(60)
        await run_all_jobs(made, await states(made))
        await submit(made, 1)
        await made.wait_for_state(S.DRAINING, "gpu-2")
        await submit(made, 40)
        await made.edge.tick()
        assert await states(made) == {"gpu-1": S.ONLINE, "gpu-2": S.ONLINE}
        assert calls(made) == {"gpu-1": ["start"], "gpu-2": ["start"]}


async def test_min_keeps_hosts_on_without_jobs_and_an_override_is_stronger(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, THREE, pools={"echo": PoolConfig(min=2)}) as made:
        await made.advance(4000)
        assert await states(made) == {"gpu-1": S.ONLINE, "gpu-2": S.ONLINE, "gpu-3": S.OFF}
        assert (await made.record()).history[0].why == "pool echo keeps 2 hosts on"
        await made.edge.power.set_override("gpu-1", "off")
        await made.wait_for_state(S.OFF)
        await made.wait_for_state(S.ONLINE, "gpu-3", within_s=900)  # after `fallback_after`


async def test_a_host_is_stopped_once_an_hour_and_started_whenever_a_job_needs_it(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, {"gpu-1": HOST}, pools={"echo": PoolConfig()}) as made:
        for _ in range(4):
            await submit(made, 1)
            await made.wait_for_state(S.ONLINE, within_s=60)
            await made.run_all_jobs()
            await made.wait_for_state(S.OFF)
        ends = [interval.until for interval in (await made.record()).on_intervals]
        gaps = [(after - before).total_seconds() for before, after in pairwise(ends)]
        assert len(gaps) == 3
        assert min(gaps) >= 3600


async def test_a_host_that_was_never_seen_is_woken_once_to_learn_what_it_offers(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, {"gpu-1": HOST, "gpu-2": replace(HOST, wake_priority=2)}) as made:
        made.runners["gpu-1"].endpoints = ()
        await submit(made, 1)
        await made.wait_for_state(S.ONLINE, "gpu-1")
        await made.wait_for_state(S.ONLINE, "gpu-2")  # the first one does not offer the pool
        await made.run_all_jobs()
        for host in ("gpu-1", "gpu-2"):
            await made.wait_for_state(S.OFF, host)
        await submit(made, 40)
        await made.wait_for_state(S.ONLINE, "gpu-2")
        assert calls(made) == {"gpu-1": ["start", "stop"], "gpu-2": ["start", "stop", "start"]}
