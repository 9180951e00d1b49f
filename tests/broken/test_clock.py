"""The calendar jumps under a running edge while elapsed time does not: no job or host is judged by the jump.

A process cannot get another calendar here, so its parts do: the services with a clock of the test, and the three clocks
of the gone rule, one of which is the calendar.
"""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec import Struct

from bus.health import ClockReading, UptimeClock
from edge.power.views import wake_left_s
from schemas.job import Job, Status
from schemas.power import PowerCall, PowerRecord, PowerState, PowerVerb
from schemas.problems import ProblemError
from tests.edge.webhooks.test_dispatcher import hooked, tried
from tests.support.edge_services import START, FakeBusServicesRig, ManualClock, fake_bus_services
from tests.support.fake_bus.broker import FakeBroker
from tests.support.wait import wait_for
from tests.support.webhook_receiver import run_receiver, statuses_in_order

DAY = timedelta(days=1)
JUMPS = {"20 hours forward": {"hours": 20}, "a day back": {"days": -1}, "a minute back": {"minutes": -1}}


class Skewed(Struct, frozen=True):
    """An edge with a calendar of its own (`time`); heartbeats and leases follow elapsed time, `passed`."""

    edge: FakeBusServicesRig
    passed: ManualClock

    def jump(self, **amount: float) -> None:
        """Move the calendar alone."""
        self.edge.time.advance(**amount)

    def go(self, **amount: float) -> None:
        """Move all clocks."""
        self.jump(**amount)
        self.passed.advance(**amount)

    def clocks(self) -> ClockReading:
        seconds = self.passed.seconds()
        return ClockReading(seconds, seconds, self.edge.time.seconds())

    async def swept(self) -> dict[str, int]:
        """Run one pass of the reconciler; return what it repaired."""
        await self.edge.wait_until_indexed()
        return {name: count for name, count in (await self.edge.reconciler.sweep()).items() if count}


@pytest.fixture
async def skewed(tmp_path: Path) -> AsyncIterator[Skewed]:
    passed = ManualClock()
    async with fake_bus_services(tmp_path, FakeBroker(passed.seconds)) as edge:
        made = Skewed(edge, passed)
        unbroken = UptimeClock(made.clocks)
        unbroken.start()
        edge.bus.health.uptime_s = unbroken.uptime_s  # type: ignore[method-assign]
        edge.webhooks.dispatcher._circuit_breaker._monotonic = passed.seconds  # as edge/container.py sets it
        yield made


async def running(world: FakeBusServicesRig) -> Job:
    await world.send_heartbeat()
    return await world.start(await world.submit())


@pytest.mark.parametrize("jump", JUMPS)
async def test_a_jump_makes_nobody_gone(skewed: Skewed, jump: str) -> None:
    job = await running(skewed.edge)
    skewed.go(seconds=40)  # its heartbeat has expired while this edge was connected
    await skewed.edge.hosts.refresh()
    assert await skewed.swept() == {}
    skewed.jump(**JUMPS[jump])
    assert await skewed.swept() == {}
    skewed.go(seconds=60)
    assert await skewed.swept() == {}
    assert (await skewed.edge.read(job)).status is Status.RUNNING
    skewed.go(minutes=11)  # it really was silent for so long
    assert (await skewed.swept()).get("release_lost_attempts") == 1


@pytest.mark.parametrize("jump", JUMPS)
async def test_jobs_before_and_behind_a_jump_run_and_are_listed(skewed: Skewed, jump: str) -> None:
    before, at_work = await skewed.edge.submit(text="before"), await running(skewed.edge)
    skewed.jump(**JUMPS[jump])
    behind = await skewed.edge.submit(text="behind")
    assert await skewed.swept() == {}
    assert await skewed.edge.list_pointers() == sorted(job.id for job in (before, at_work, behind))
    assert (await skewed.edge.finish_running(at_work)).status is Status.SUCCEEDED
    for job in (before, behind):
        assert (await skewed.edge.finish(job)).status is Status.SUCCEEDED
    assert await skewed.edge.list_pointers() == []


async def test_what_is_due_waits_for_a_clock_that_was_set_back_and_is_not_forgotten(skewed: Skewed) -> None:
    job = await skewed.edge.submit(not_before=(START + timedelta(hours=1)).isoformat())
    skewed.jump(days=-1)
    assert await skewed.swept() == {}
    skewed.jump(days=1)
    skewed.go(hours=1)
    assert (await skewed.swept())["enqueue_due"] == 1
    assert await skewed.edge.list_pointers() == [job.id]


async def test_the_hourly_check_goes_on_behind_a_clock_that_was_set_back(skewed: Skewed) -> None:
    skewed.jump(days=-1)
    assert skewed.edge.reconcile_context.index_check_timer.is_due(skewed.edge.time())


async def test_a_webhook_s_next_try_does_not_wait_for_a_calendar_that_was_set_back(skewed: Skewed) -> None:
    async with run_receiver(statuses_in_order(500, 204)) as receiver:
        await tried(skewed.edge, await hooked(skewed.edge, receiver.url), 1)
        skewed.jump(days=-1)

        async def came_again() -> bool:
            skewed.go(seconds=1)
            return len(receiver.got) == 2

        await wait_for(came_again)


@pytest.mark.parametrize(("jump", "left_s"), [(-DAY, 120.0), (timedelta(seconds=30), 90.0), (DAY, 0.0)])
def test_a_wake_takes_no_longer_than_it_usually_does(jump: timedelta, left_s: float) -> None:
    call = PowerCall("c1", PowerVerb.START, START)
    waking = PowerRecord(state=PowerState.WAKING, since=START, call=call, wake_durations_s=(120.0,))
    assert wake_left_s(waking, START + jump) == left_s


async def test_a_wrong_calendar_is_believed_where_a_date_was_promised(skewed: Skewed) -> None:
    """With a clock that is ahead, deadlines, start timeouts and retention come early."""
    due = await skewed.edge.submit(deadline=(START + timedelta(hours=5)).isoformat())
    patient, ended = await skewed.edge.submit(text="patient"), await skewed.edge.submit(text="ended")
    await skewed.edge.finish(ended)
    skewed.jump(hours=20)
    assert await skewed.swept() == {"expire_unstarted": 1}
    assert (await skewed.edge.read(due)).status is Status.EXPIRED
    assert (await skewed.edge.read(patient)).status is Status.QUEUED
    skewed.jump(hours=-20)
    assert (await skewed.edge.read(due)).status is Status.EXPIRED
    skewed.jump(days=31)
    swept = await skewed.swept()
    assert (swept["expire_unstarted"], swept["purge_past_retention"]) == (1, 2)
    assert (await skewed.edge.read(patient)).status is Status.EXPIRED
    for job in (due, ended):
        with pytest.raises(ProblemError):
            await skewed.edge.read(job)
