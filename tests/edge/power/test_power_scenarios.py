"""Scenes of power control over the fake bus, with a clock that the test advances."""

from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from bus.interface import BrokerUnreachable
from edge.hosts.registry import WakeForecast
from edge.power.views import CANNOT_POWER_ON
from schemas.host import KeepReason
from schemas.host_config import DailyBudget, WolHostConfig
from schemas.job import Priority, Status, WaitReason
from schemas.power import PowerRecord, ReportedPower
from schemas.power import PowerState as S
from schemas.problems import ProblemError
from schemas.texts import Language
from tests.edge.power.power_rig import HEARTBEAT_INTERVAL_S, HOST, PowerRig, PowerRigEdge, run_power_rig
from tests.support.edge_services import START, fake_bus_services

ONE = {"gpu-1": HOST}


def calls(made: PowerRig, host: str = "gpu-1") -> list[str]:
    return [verb for verb, _ in made.drivers[host].calls]


async def test_a_job_lights_a_dark_host_and_the_light_goes_out_again(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, ONE) as made:
        assert (await made.record()).state is S.OFF
        await made.edge.world.submit()
        await made.edge.tick()
        assert (await made.record()).state is S.WAKING
        assert calls(made) == ["start"]
        record = await made.wait_for_state(S.ONLINE)
        await made.run_all_jobs()
        await made.wait_for_state(S.OFF)
        assert await made.list_states() == ["waking", "online", "draining", "stopping", "off"]
        assert calls(made) == ["start", "stop"]
        assert 0 < record.wake_durations_s[0] < 30
        assert made.edge.notices == ["host_waking gpu-1"]


async def test_the_light_stays_on_for_min_on_and_idle_after(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, ONE) as made:
        await made.edge.world.submit()
        on = await made.wait_for_state(S.ONLINE)
        await made.run_all_jobs()
        drained = await made.wait_for_state(S.DRAINING)
        assert 900 <= (drained.since - on.since).total_seconds() < 920


async def test_a_driver_that_cannot_report_the_state_says_why(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, ONE) as made:
        await made.edge.world.submit()
        await made.edge.tick()
        made.drivers["gpu-1"].broken = True
        await made.edge.tick()
        [view] = made.edge.power.host_views(made.edge.world.hosts.views())
        why = "ask the power driver for its state (the driver is broken: repair it): see that driver's settings"
        assert (view.state, view.waits) == ("waking", (why,))


async def test_ten_jobs_while_it_wakes_are_one_start(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, ONE, edges=2) as made:
        for _ in range(10):
            await made.edge.world.submit()
            for edge in made.edges:
                await edge.tick()
        await made.wait_for_state(S.ONLINE)
        assert calls(made) == ["start"]


async def test_work_that_comes_while_it_drains_undoes_the_drain(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, ONE) as made:
        await made.edge.world.submit()
        await made.wait_for_state(S.ONLINE)
        await made.run_all_jobs()
        await made.wait_for_state(S.DRAINING)
        await made.edge.world.submit()
        await made.edge.tick()
        assert (await made.record()).state is S.ONLINE
        assert calls(made) == ["start"]


async def test_work_that_comes_while_it_stops_waits_for_off_and_wakes_it_again(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, ONE) as made:
        await made.edge.world.submit()
        await made.wait_for_state(S.ONLINE)
        await made.run_all_jobs()
        await made.wait_for_state(S.STOPPING)
        await made.edge.world.submit()
        await made.edge.tick()
        assert (await made.record()).state is S.STOPPING
        await made.wait_for_state(S.ONLINE)
        assert (await made.list_states())[-4:] == ["stopping", "off", "waking", "online"]


async def test_a_stop_is_not_made_when_work_comes_between_the_write_and_the_call(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, ONE) as made:
        await made.edge.world.submit()
        await made.wait_for_state(S.ONLINE)
        await made.run_all_jobs()
        await made.wait_for_state(S.DRAINING)
        await made.advance(5)
        made.time.advance(seconds=6)
        await made.runners["gpu-1"].beat()
        await made.edge.world.hosts.refresh()
        [due] = await made.edge.power.tick()
        await made.edge.world.submit()
        await made.edge.power._execute_call(due)
        assert "stop" not in calls(made)
        await made.edge.tick()
        assert (await made.record()).state is S.ONLINE


async def test_an_upload_that_lasts_past_the_idle_timer_keeps_the_light_on(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, ONE) as made:
        job = await made.edge.world.submit()
        await made.wait_for_state(S.ONLINE)
        made.runners["gpu-1"].work = [job]
        await made.run_all_jobs()  # recorded as done, but its execution still has to be acknowledged and cleaned up
        await made.advance(3600)
        assert (await made.record()).state is S.ONLINE
        made.runners["gpu-1"].work = []
        await made.wait_for_state(S.OFF, within_s=1200)


@pytest.mark.parametrize("running", [True, False])
async def test_a_restart_of_the_broker_is_no_death_and_no_cycle(tmp_path: Path, running: bool) -> None:
    async with run_power_rig(tmp_path, ONE) as made:
        job = await made.edge.world.submit()
        await made.wait_for_state(S.ONLINE)
        if running:
            job = await made.edge.world.start(job, incarnation="life-1")
            made.runners["gpu-1"].work = [job]
        before = await made.record()
        made.broker.stop()
        made.time.advance(seconds=120)
        with pytest.raises(BrokerUnreachable):
            await made.edge.power.tick()
        made.broker.start()
        await made.edge.tick()  # all heartbeats have expired
        assert await made.record() == before
        await made.advance(60)
        assert await made.record() == before
        assert calls(made) == ["start"]


async def test_a_host_with_a_heartbeat_that_cannot_be_read_is_neither_stopped_nor_woken_again(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, ONE) as made:
        job = await made.edge.world.submit()
        await made.wait_for_state(S.ONLINE)
        await made.edge.world.finish(job)
        runner = made.runners["gpu-1"]
        runner.unreadable_by = made.broker  # a newer release has replaced its runner
        await made.advance(7200)
        assert calls(made) == ["start"]
        assert (await made.record()).state is S.ONLINE
        [view] = made.edge.power.host_views(made.edge.world.hosts.views())
        assert [kept.reason for kept in view.kept_on] == [KeepReason.UNREADABLE]
        await made.edge.power.set_override("gpu-1", "off")  # nobody knows whether a job would be killed
        await made.advance(3600)
        assert (await made.record()).state is S.DRAINING
        runner.unreadable_by = None  # the edge has been upgraded too
        await made.wait_for_state(S.OFF, within_s=1200)
        assert calls(made) == ["start", "stop"]


async def test_a_restart_of_the_broker_while_dark_wakes_nobody(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, ONE) as made:
        made.broker.restart()
        await made.advance(120)
        assert calls(made) == []
        assert (await made.record()).state is S.OFF


async def test_an_edge_that_restarts_while_waking_goes_on(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, ONE) as made:
        await made.edge.world.submit()
        await made.edge.tick()
        async with fake_bus_services(tmp_path / "next", made.broker, made.time) as again:
            made.edges[0] = PowerRigEdge(again, ONE, made.drivers)
            await made.wait_for_state(S.ONLINE)
        assert calls(made) == ["start"]


async def test_a_call_whose_edge_died_is_made_again_by_another(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, ONE, edges=2) as made:
        await made.edge.world.submit()
        await made.edge.tick(calling=False)
        made.edges.pop(0)
        await made.advance(60)
        assert calls(made) == []
        await made.wait_for_state(S.ONLINE, within_s=90)
        assert calls(made) == ["start"]


async def test_a_write_that_seemed_to_fail_is_called_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run_power_rig(tmp_path, ONE) as made:
        await made.edge.world.submit()
        table = made.edge.world.bus.power_records
        written = table.update

        async def cut_off(*row: object) -> int:
            await written(*row)
            raise BrokerUnreachable("the answer was lost")

        monkeypatch.setattr(table, "update", cut_off)
        await made.edge.tick()
        assert calls(made) == []
        monkeypatch.undo()
        await made.edge.tick()
        assert calls(made) == ["start"]


async def test_sold_out_is_a_state_that_people_hear_of_and_that_passes(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, ONE) as made:
        made.drivers["gpu-1"].sold_out = 2
        await made.edge.world.submit()
        blocked = await made.wait_for_state(S.BLOCKED)
        assert blocked.why.startswith("no capacity")
        [view] = made.edge.power.host_views(made.edge.world.hosts.views())
        assert view.waits == (CANNOT_POWER_ON.format(why="no machine is free: the call is repeated"),)
        [chinese] = made.edge.power.host_views(made.edge.world.hosts.views(), Language.ZH)
        assert chinese.waits[0].startswith("为其开机（")
        assert [change["why"].partition("：")[0] for change in chinese.history] == ["有任务在等待它", "没有可用资源"]
        assert made.edge.power.wait_reason("gpu-1") is WaitReason.HOST_BLOCKED
        await made.wait_for_state(S.ONLINE)
        assert made.edge.notices == ["host_waking gpu-1", "host_blocked gpu-1", "host_waking gpu-1"]
        assert calls(made) == ["start"] * 3


async def test_the_next_host_is_called_when_the_first_is_blocked_for_long(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, {"gpu-1": HOST, "gpu-2": replace(HOST, wake_priority=2)}) as made:
        made.drivers["gpu-1"].sold_out = 1000
        await made.edge.world.submit()
        blocked = await made.wait_for_state(S.BLOCKED)
        woken = await made.wait_for_state(S.WAKING, "gpu-2")
        assert 600 <= (woken.since - blocked.since).total_seconds() < 610
        await made.wait_for_state(S.ONLINE, "gpu-2")
        await made.wait_for_state(S.OFF)
        assert (await made.record()).why == "no job waits for it any more"


async def test_a_host_that_does_not_boot_is_cycled_once_and_then_at_fault_until_its_owner_looks(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, ONE) as made:
        made.runners["gpu-1"].crashed = True
        await made.edge.world.submit()
        await made.wait_for_state(S.FAULT)
        assert calls(made) == ["start", "stop", "start"]
        assert made.edge.power.wait_reason("gpu-1") is WaitReason.HOST_FAULT
        await made.advance(3600)
        assert calls(made) == ["start", "stop", "start"]
        await made.edge.power.set_override("gpu-1", "auto")
        made.runners["gpu-1"].crashed = False
        await made.wait_for_state(S.ONLINE)


async def test_a_host_that_hangs_in_stopping_is_at_fault_and_serves_when_work_comes(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, ONE, slow=False) as made:
        await made.edge.world.submit()
        await made.wait_for_state(S.ONLINE)
        await made.run_all_jobs()
        made.drivers["gpu-1"].stop = _nothing  # type: ignore[method-assign]
        fault = await made.wait_for_state(S.FAULT)
        assert fault.why == "it did not power off in time"
        await made.advance(3600)
        assert (await made.record()).state is S.FAULT
        await made.edge.world.submit()
        await made.wait_for_state(S.ONLINE, within_s=10)


async def _nothing(call_id: str) -> None:
    """A driver call that reports success without an effect."""


async def test_an_owner_may_hold_it_on_and_off(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, ONE) as made:
        await made.edge.power.set_override("gpu-1", "on", made.time() + timedelta(hours=2))
        await made.wait_for_state(S.ONLINE)
        await made.advance(3600)
        assert (await made.record()).state is S.ONLINE
        job = await made.edge.world.submit()
        made.runners["gpu-1"].work = [job]
        await made.edge.power.set_override("gpu-1", "off", made.time() + timedelta(hours=2))
        await made.wait_for_state(S.DRAINING)
        await made.advance(600)
        assert (await made.record()).state is S.DRAINING  # never a hard stop
        made.runners["gpu-1"].work = []
        await made.wait_for_state(S.BLOCKED)  # off, and the queued job waits for the hold to end
        assert made.edge.power.wait_reason("gpu-1") is WaitReason.HOST_BLOCKED
        record = await made.wait_for_state(S.ONLINE)
        assert record.override is None


async def test_an_override_for_a_host_without_a_driver_is_refused(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, ONE) as made:
        with pytest.raises(ProblemError) as refused:
            await made.edge.power.set_override("gpu-9", "on")
        assert refused.value.code == "not_found"


async def test_a_budget_lets_what_runs_end_and_then_bars(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, {"gpu-1": replace(HOST, budget=DailyBudget(hours=1))}) as made:
        jobs = [await made.edge.world.submit(text=str(n)) for n in range(2)]
        await made.wait_for_state(S.ONLINE)
        made.runners["gpu-1"].work = jobs[:1]
        drained = await made.wait_for_state(S.DRAINING)
        assert drained.why == "its daily budget is used up"
        await made.advance(600)
        assert (await made.record()).state is S.DRAINING
        made.runners["gpu-1"].work = []
        await made.wait_for_state(S.BLOCKED)
        await made.wait_for_state(S.ONLINE, within_s=86_400)  # the next day


async def test_low_alone_waits_for_its_deadline_to_press(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, ONE) as made:
        soon = START + timedelta(hours=3)
        await made.edge.world.submit(priority=Priority.LOW, deadline=soon.isoformat())
        await made.advance(3600)
        assert calls(made) == []
        woken = await made.wait_for_state(S.WAKING, within_s=3 * 3600)
        assert timedelta(minutes=3) < soon - woken.since <= timedelta(minutes=4, seconds=5)


async def test_work_for_later_wakes_the_host_in_time_and_input_under_way_at_once(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, ONE) as made:
        later = START + timedelta(hours=1)
        await made.edge.world.submit(not_before=later.isoformat())
        woken = await made.wait_for_state(S.WAKING)
        assert timedelta(minutes=3) < later - woken.since <= timedelta(minutes=4, seconds=5)


async def _awaiting(made: PowerRig, **more: str) -> None:
    given = {"file": f"sha256:{'ab' * 32}"}
    await made.edge.world.jobs.submit("ann", {"endpoint": "echo", "input": given, "await_input": True, **more})


async def test_a_job_whose_files_are_still_to_come_wakes_the_host(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, ONE) as made:
        await _awaiting(made)
        await made.wait_for_state(S.WAKING, within_s=60)


async def test_low_input_under_way_wakes_nobody_before_it_presses(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, ONE) as made:
        soon = START + timedelta(minutes=20)
        await _awaiting(made, priority="low", deadline=soon.isoformat())
        await made.edge.world.submit(priority=Priority.LOW, not_before=(START + timedelta(minutes=2)).isoformat())
        await made.advance(600)
        assert calls(made) == []
        woken = await made.wait_for_state(S.WAKING, within_s=1200)
        assert timedelta(minutes=3) < soon - woken.since <= timedelta(minutes=4, seconds=5)


async def test_a_silent_host_is_not_cycled_until_its_job_is_released(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, ONE) as made:
        job = await made.edge.world.start(await made.edge.world.submit(), incarnation="life-1")
        made.drivers["gpu-1"].power = ReportedPower.ON
        await made.wait_for_state(S.ONLINE)
        made.runners["gpu-1"].crashed = True
        await made.wait_for_state(S.WAKING)
        await made.advance(3600)
        assert (await made.record()).state is S.WAKING
        assert calls(made) == []
        assert made.edge.power.is_off("gpu-1") is False
        repairs = await made.edge.world.reconciler.sweep()
        assert repairs["release_lost_attempts"] == 1, "no other host is on: the reconciler releases the job"
        await made.advance(HEARTBEAT_INTERVAL_S)
        assert [change.why for change in (await made.record()).history][-1] == "no heartbeat in time: one power cycle"
        made.runners["gpu-1"].crashed = False
        await made.wait_for_state(S.ONLINE)
        assert calls(made) == ["stop", "start"]
        job = await made.edge.world.read(job)
        assert (job.status, job.free_releases) == (Status.QUEUED, {"host_lost": 1})


async def test_an_override_whose_answer_comes_late_does_not_undo_a_newer_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run_power_rig(tmp_path, ONE) as made:
        power, states = made.edge.power, list[tuple[str, str]]()
        power.subscribe_records(lambda _host, before, after: states.append((before.state, after.state)))
        update = power._table.update

        async def update_and_tick(host: str, record: PowerRecord, revision: int) -> int:
            monkeypatch.setattr(power._table, "update", update)
            written = await update(host, record, revision)
            await made.edge.tick()  # the override is stored, and its answer is not there yet
            return written

        monkeypatch.setattr(power._table, "update", update_and_tick)
        await power.set_override("gpu-1", "on")
        record = power.record("gpu-1")
        assert record is not None
        assert record.state is S.WAKING
        assert states == [("off", "off"), ("off", "waking")]


async def test_a_host_without_a_word_of_its_own_is_off_when_silent_and_powers_itself_off(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, {"gpu-1": WolHostConfig(mac="a4:bb:6d:00:11:22", timezone="UTC")}) as made:
        driver = made.drivers["gpu-1"]
        driver._can_report_state = False
        await made.edge.world.submit()
        await made.wait_for_state(S.ONLINE)
        await made.run_all_jobs()
        stopping = await made.wait_for_state(S.STOPPING)
        assert stopping.runner_powers_off
        await made.wait_for_state(S.OFF)
        assert made.edge.power.is_off("gpu-1") is None


async def test_two_edges_tell_their_own_clients_of_one_effect(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, ONE, edges=2) as made:
        await made.edge.world.submit()
        await made.wait_for_state(S.ONLINE)
        assert [edge.notices for edge in made.edges] == [["host_waking gpu-1"]] * 2


async def test_what_is_shown_of_a_host(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, ONE) as made:
        power = made.edge.power
        [never] = power.host_views(())
        assert (never.id, never.state, never.wake_median_s, never.history) == ("gpu-1", "off", None, ())
        assert never.declared
        prospect = power.wake_forecast("echo")
        assert prospect is not None
        assert prospect == WakeForecast(WaitReason.HOST_OFF, "gpu-1", None, None)
        await made.edge.world.submit()
        await made.edge.tick()
        assert power.wait_reason("gpu-1") is WaitReason.HOST_WAKING
        made.drivers["gpu-1"].finish_transition()
        await made.edge.tick()
        assert power.wait_reason("gpu-1") is WaitReason.HOST_BOOTING
        await made.wait_for_state(S.ONLINE)
        await made.edge.tick()
        [view] = power.host_views(made.edge.world.hosts.views())
        assert (view.state, power.wait_reason("gpu-1"), power.wake_forecast("echo")) == ("online", None, None)
        assert [row["state"] for row in view.history] == ["waking", "online"]
        assert view.wake_median_s == (await made.record()).wake_durations_s[0]
