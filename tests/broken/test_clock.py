"""The calendar's clock jumps under a running edge, and the time that passes does not: nobody is judged by it.

A process cannot be given another calendar here, so its parts are: the services with a clock of the test's own, and the
gone rule's three clocks, of which the calendar is one.
"""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec import Struct

from bus.memory import MemoryBroker
from bus.unbroken import Now, Unbroken
from edge.power.show import wake_left_s
from schemas.errors import Refused
from schemas.job import Job
from schemas.power import Call, PowerRecord, PowerState, Verb
from schemas.words import Status
from tests.broker import until
from tests.edge.services.world import START, FakeWorld, Time, fake_world
from tests.edge.webhooks.receiver import in_turn, receiving
from tests.edge.webhooks.test_courier import hooked, tried

DAY = timedelta(days=1)
JUMPS = {"20 hours forward": {"hours": 20}, "a day back": {"days": -1}, "a minute back": {"minutes": -1}}


class Skewed(Struct, frozen=True):
    """An edge whose calendar is `edge.time`; presence and leases go by what really passes, `passed`."""

    edge: FakeWorld
    passed: Time

    def jump(self, **amount: float) -> None:
        """The calendar alone."""
        self.edge.time.pass_by(**amount)

    def go(self, **amount: float) -> None:
        """Time passes, for all clocks."""
        self.jump(**amount)
        self.passed.pass_by(**amount)

    def clocks(self) -> Now:
        seconds = self.passed.seconds()
        return Now(seconds, seconds, self.edge.time.seconds())

    async def swept(self) -> dict[str, int]:
        """What one walk of the reconciler mended."""
        await self.edge.settled()
        return {name: count for name, count in (await self.edge.reconciler.sweep()).items() if count}


@pytest.fixture
async def skewed(tmp_path: Path) -> AsyncIterator[Skewed]:
    passed = Time()
    async with fake_world(tmp_path, MemoryBroker(passed.seconds)) as edge:
        made = Skewed(edge, passed)
        unbroken = Unbroken(made.clocks)
        unbroken.up()
        edge.bus.link.unbroken_s = unbroken.seconds  # type: ignore[method-assign]
        edge.webhooks.courier._receivers._clock = passed.seconds  # as the assembly has it
        yield made


async def running(world: FakeWorld) -> Job:
    await world.appear()
    return await world.start(await world.submit())


@pytest.mark.parametrize("jump", JUMPS)
async def test_a_jump_makes_nobody_gone(skewed: Skewed, jump: str) -> None:
    job = await running(skewed.edge)
    skewed.go(seconds=40)  # its presence has run out, and this edge was connected all the while
    await skewed.edge.hosts.refresh()
    assert await skewed.swept() == {}
    skewed.jump(**JUMPS[jump])
    assert await skewed.swept() == {}
    skewed.go(seconds=60)
    assert await skewed.swept() == {}
    assert (await skewed.edge.read(job)).status is Status.RUNNING
    skewed.go(minutes=11)  # silent for so long in truth
    assert (await skewed.swept()).get("free_lost") == 1


@pytest.mark.parametrize("jump", JUMPS)
async def test_jobs_before_and_behind_a_jump_run_and_are_listed(skewed: Skewed, jump: str) -> None:
    before, at_work = await skewed.edge.submit(text="before"), await running(skewed.edge)
    skewed.jump(**JUMPS[jump])
    behind = await skewed.edge.submit(text="behind")
    assert await skewed.swept() == {}
    assert await skewed.edge.waiting() == sorted(job.id for job in (before, at_work, behind))
    assert (await skewed.edge.finish_running(at_work)).status is Status.SUCCEEDED
    for job in (before, behind):
        assert (await skewed.edge.finish(job)).status is Status.SUCCEEDED
    assert await skewed.edge.waiting() == []


async def test_what_is_due_waits_for_a_clock_that_was_set_back_and_is_not_forgotten(skewed: Skewed) -> None:
    job = await skewed.edge.submit(not_before=(START + timedelta(hours=1)).isoformat())
    skewed.jump(days=-1)
    assert await skewed.swept() == {}
    skewed.jump(days=1)
    skewed.go(hours=1)
    assert (await skewed.swept())["queue_due"] == 1
    assert await skewed.edge.waiting() == [job.id]


async def test_the_hourly_check_goes_on_behind_a_clock_that_was_set_back(skewed: Skewed) -> None:
    skewed.jump(days=-1)
    assert skewed.edge.scene.hourly.due(skewed.edge.time())


async def test_a_webhook_s_next_try_does_not_wait_for_a_calendar_that_was_set_back(skewed: Skewed) -> None:
    async with receiving(in_turn(500, 204)) as receiver:
        await tried(skewed.edge, await hooked(skewed.edge, receiver.url), 1)
        skewed.jump(days=-1)

        async def came_again() -> bool:
            skewed.go(seconds=1)
            return len(receiver.got) == 2

        await until(came_again)


@pytest.mark.parametrize(("jump", "left_s"), [(-DAY, 120.0), (timedelta(seconds=30), 90.0), (DAY, 0.0)])
def test_a_wake_takes_no_longer_than_it_usually_does(jump: timedelta, left_s: float) -> None:
    call = Call("c1", Verb.START, START)
    waking = PowerRecord(state=PowerState.WAKING, since=START, call=call, wakes=(120.0,))
    assert wake_left_s(waking, START + jump) == left_s


async def test_a_wrong_calendar_is_believed_where_a_date_was_promised(skewed: Skewed) -> None:
    """By a clock that runs ahead deadlines, start timeouts and retention come early, and nobody takes it back."""
    due = await skewed.edge.submit(deadline=(START + timedelta(hours=5)).isoformat())
    patient, ended = await skewed.edge.submit(text="patient"), await skewed.edge.submit(text="ended")
    await skewed.edge.finish(ended)
    skewed.jump(hours=20)
    assert await skewed.swept() == {"expire": 1}
    assert (await skewed.edge.read(due)).status is Status.EXPIRED
    assert (await skewed.edge.read(patient)).status is Status.QUEUED
    skewed.jump(hours=-20)
    assert (await skewed.edge.read(due)).status is Status.EXPIRED
    skewed.jump(days=31)
    swept = await skewed.swept()
    assert (swept["expire"], swept["forget"]) == (1, 2)
    assert (await skewed.edge.read(patient)).status is Status.EXPIRED
    for job in (due, ended):
        with pytest.raises(Refused):
            await skewed.edge.read(job)
