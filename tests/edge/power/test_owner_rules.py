"""Rules of owners over the fake bus: foreign use, quiet hours, low priority, and the next host."""

from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from schemas.host import ActivityCounts, activity_view
from schemas.host_config import DailyBudget, PowerPrice
from schemas.job import Priority, WaitReason
from schemas.power import ForeignUse
from schemas.power import PowerState as S
from tests.edge.power.power_rig import HOST, PowerRig, run_power_rig
from tests.support.edge_services import START

BRISK = replace(HOST, min_on=30.0, idle_after=60.0)
ONE = {"gpu-1": BRISK}


def calls(made: PowerRig, host: str = "gpu-1") -> list[str]:
    return [verb for verb, _ in made.drivers[host].calls]


@pytest.mark.parametrize("busy", [ActivityCounts(users=1), ActivityCounts(programs=2), ActivityCounts(unrecovered=1)])
async def test_the_light_stays_on_while_anything_keeps_the_host_busy(tmp_path: Path, busy: ActivityCounts) -> None:
    async with run_power_rig(tmp_path, ONE) as made:
        await made.edge.world.submit()
        await made.wait_for_state(S.ONLINE)
        await made.run_all_jobs()
        made.runners["gpu-1"].busy = busy
        await made.advance(300)
        assert (await made.record()).state is S.ONLINE
        [seen] = made.edge.power.host_views(made.edge.world.hosts.views())
        assert seen.busy == activity_view(busy, queued=0)
        made.runners["gpu-1"].busy = ActivityCounts()
        await made.wait_for_state(S.OFF, within_s=300)


@pytest.mark.parametrize(
    ("ignored", "busy"), [("users", ActivityCounts(users=1)), ("programs", ActivityCounts(programs=1))]
)
async def test_an_owner_may_ignore_the_people_or_their_programs(
    tmp_path: Path, ignored: ForeignUse, busy: ActivityCounts
) -> None:
    kept: tuple[ForeignUse, ...] = ("users", "programs")
    rules = replace(BRISK, keep_on_for=tuple(one for one in kept if one != ignored))
    async with run_power_rig(tmp_path, {"gpu-1": rules}) as made:
        await made.edge.world.submit()
        await made.wait_for_state(S.ONLINE)
        await made.run_all_jobs()
        made.runners["gpu-1"].busy = busy
        await made.wait_for_state(S.OFF, within_s=300)


async def test_somebody_who_logs_in_while_it_drains_undoes_the_drain(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, ONE) as made:
        await made.edge.world.submit()
        await made.wait_for_state(S.ONLINE)
        await made.run_all_jobs()
        await made.wait_for_state(S.DRAINING)
        made.runners["gpu-1"].busy = ActivityCounts(users=1)
        await made.wait_for_state(S.ONLINE, within_s=10)
        assert calls(made) == ["start"]


async def test_low_rides_along_when_other_work_wakes_the_host(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, ONE) as made:
        low = await made.edge.world.submit(text="low", priority=Priority.LOW)
        await made.advance(300)
        assert calls(made) == []
        await made.edge.world.submit(text="normal")
        await made.wait_for_state(S.ONLINE)
        await made.advance(300)
        assert (await made.record()).state is S.ONLINE  # waiting jobs are done before the host powers off
        await made.run_all_jobs()
        assert (await made.edge.world.read(low)).status == "succeeded"
        await made.wait_for_state(S.OFF, within_s=300)


async def test_low_that_waited_for_its_limit_wakes_the_host(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, ONE) as made:
        await made.edge.world.submit(priority=Priority.LOW)
        made.time.advance(hours=11)
        await made.edge.world.reconciler.sweep()
        await made.advance(60)
        assert calls(made) == []
        made.time.advance(hours=1)
        await made.edge.world.reconciler.sweep()
        await made.wait_for_state(S.WAKING, within_s=60)


async def test_quiet_hours_keep_it_dark_and_work_waits_for_their_end(tmp_path: Path) -> None:
    assert START.hour == 12
    async with run_power_rig(tmp_path, {"gpu-1": replace(BRISK, quiet_hours=("12:00-12:10",))}) as made:
        job = await made.edge.world.submit()
        blocked = await made.wait_for_state(S.BLOCKED)
        assert blocked.why == "quiet hours"
        made.edge.world.wake_forecasts.forecast = made.edge.power.wake_forecast("echo")
        view = await made.edge.world.job_views.build(await made.edge.world.jobs.read(job.key))
        assert view.reason == WaitReason.HOST_BLOCKED
        woken = await made.wait_for_state(S.WAKING)
        assert START + timedelta(minutes=10) <= woken.since < START + timedelta(minutes=11)


async def test_quiet_hours_let_a_host_go_that_is_empty_and_never_one_that_works(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, {"gpu-1": replace(BRISK, quiet_hours=("12:05-12:59",), min_on=7200.0)}) as made:
        job = await made.edge.world.submit()
        await made.wait_for_state(S.ONLINE)
        made.runners["gpu-1"].work = [job]
        await made.wait_for_state(S.DRAINING)
        await made.advance(120)
        assert (await made.record()).state is S.DRAINING
        made.runners["gpu-1"].work = []
        await made.run_all_jobs()
        await made.wait_for_state(S.OFF, within_s=300)


async def test_a_budget_in_money_counts_electricity(tmp_path: Path) -> None:
    price = PowerPrice(per_kwh=4.0, watts=500.0)
    async with run_power_rig(tmp_path, {"gpu-1": replace(BRISK, budget=DailyBudget(money=0.1), price=price)}) as made:
        job = await made.edge.world.submit()
        on = await made.wait_for_state(S.WAKING)
        made.runners["gpu-1"].work = [job]
        drained = await made.wait_for_state(S.DRAINING)
        assert 180 <= (drained.since - on.since).total_seconds() < 190


async def test_the_next_host_is_woken_when_the_first_does_not_boot(tmp_path: Path) -> None:
    async with run_power_rig(
        tmp_path, {"gpu-1": replace(BRISK, boot_timeout=60.0), "gpu-2": replace(BRISK, wake_priority=2)}
    ) as made:
        made.runners["gpu-1"].crashed = True
        await made.edge.world.submit()
        cycled = await made.wait_for_state(S.STOPPING)
        woken = await made.wait_for_state(S.WAKING, "gpu-2", within_s=30)
        assert (woken.since - cycled.since).total_seconds() < 10
        await made.wait_for_state(S.ONLINE, "gpu-2")


async def test_hosts_that_do_not_boot_come_to_a_fault_of_which_people_hear(tmp_path: Path) -> None:
    async with run_power_rig(
        tmp_path, {"gpu-1": replace(BRISK, boot_timeout=60.0), "gpu-2": replace(BRISK, wake_priority=2)}
    ) as made:
        made.runners["gpu-1"].crashed = made.runners["gpu-2"].crashed = True
        await made.edge.world.submit()
        for host in ("gpu-1", "gpu-2"):
            await made.wait_for_state(S.FAULT, host)
            assert f"host_fault {host}" in made.edge.notices


async def test_a_deadline_does_not_hurry_what_may_start_at_once_and_low_is_called_in_time(tmp_path: Path) -> None:
    """Normal jobs wake a host at once, whatever their deadline; with `not_before` in time for it."""
    async with run_power_rig(tmp_path, ONE) as made:
        start, end = START + timedelta(minutes=15), START + timedelta(hours=2)
        await made.edge.world.submit(not_before=start.isoformat(), deadline=end.isoformat())
        await made.advance(300)
        assert calls(made) == []
        woken = await made.wait_for_state(S.WAKING)
        assert timedelta(minutes=3) < start - woken.since <= timedelta(minutes=4, seconds=5)


async def test_a_host_in_maintenance_is_left_alone_and_the_next_one_is_woken(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, {"gpu-1": BRISK, "gpu-2": replace(BRISK, wake_priority=2)}) as made:
        await made.edge.world.submit()
        await made.wait_for_state(S.ONLINE)
        await made.edge.world.hosts.pauses.start_maintenance("gpu-1", "ops")
        await made.wait_for_state(S.ONLINE, "gpu-2")
        await made.run_all_jobs()
        await made.wait_for_state(S.OFF, "gpu-2", within_s=300)
        made.runners["gpu-1"].crashed = True  # it is started again by hand
        await made.advance(1200)
        assert (await made.record()).state is S.ONLINE
        assert calls(made) == ["start"]
        made.runners["gpu-1"].crashed = False
        await made.advance(10)
        await made.edge.world.hosts.pauses.end_maintenance("gpu-1")
        await made.wait_for_state(S.OFF, within_s=300)


async def test_jobs_of_a_paused_endpoint_wake_no_host_and_keep_none_on(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, ONE) as made:
        pauses = made.edge.world.hosts.pauses
        await pauses.pause_endpoint("echo", "ops")
        await made.edge.world.submit()
        await made.advance(300)
        assert calls(made) == []
        await pauses.resume_endpoint("echo")
        await made.wait_for_state(S.ONLINE, within_s=60)
        await pauses.pause_endpoint("echo", "ops")
        await made.wait_for_state(S.OFF, within_s=300)


async def test_a_host_that_is_known_to_lack_what_is_required_is_not_woken(tmp_path: Path) -> None:
    hosts = {"gpu-1": HOST, "gpu-2": replace(HOST, wake_priority=2)}
    async with run_power_rig(tmp_path, hosts) as made:
        made.runners["gpu-1"].unmet = {"echo": "label disk = nvme (it has no such label)"}
        await made.edge.world.submit()
        await made.wait_for_state(S.ONLINE)  # it was never seen, so that it might have what is required
        await made.wait_for_state(S.OFF)
        assert calls(made) == ["start", "stop"]
        assert calls(made, "gpu-2")[:1] == ["start"]
        await made.wait_for_state(S.ONLINE, "gpu-2")
        await made.run_all_jobs()
        await made.wait_for_state(S.OFF, "gpu-2")
        await made.edge.world.submit()
        await made.wait_for_state(S.ONLINE, "gpu-2")
        assert calls(made) == ["start", "stop"]
