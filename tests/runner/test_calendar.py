"""A host's calendar is set forward and back while its jobs run: no job is timed out, billed or delayed by it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from runner.claiming.loop import Nak, Start, decide
from runner.context import StartTime, Uptime
from runner.engines.port import ContainerExit
from runner.execution import durable_state
from runner.execution.container_run import elapsed_s, run_s
from runner.execution.durable_state import START_DELAY_LIMIT_S, start_delay_s
from schemas.events import Adopted, AttemptReleased
from schemas.job import Job, Policy, Status
from schemas.lifecycle import JITTERED_BACKOFF_LIMIT
from tests.runner.test_claims import HOST, entry
from tests.support.fake_engine import FakeContainer
from tests.support.runner_environment import RunnerEnvironment, write_outputs
from tests.support.schema_samples import NOW, make_job
from tests.support.wait import wait_for

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
JUMPS = {"a day back": -DAY, "an hour back": -HOUR, "an hour forward": HOUR, "a day forward": DAY}
LIMIT_S = 600.0
BEGUN = StartTime(NOW, Uptime("boot", 100.0))


@pytest.fixture
def world(tmp_path: Path) -> RunnerEnvironment:
    return RunnerEnvironment(tmp_path)


def seen(after_s: float, jump: timedelta = timedelta(0), boot: str = "boot") -> StartTime:
    """Return the moment `after_s` seconds after BEGUN."""
    return StartTime(NOW + timedelta(seconds=after_s) + jump, Uptime(boot, 100.0 + after_s))


def told(ran: float, jump: timedelta = timedelta(0)) -> ContainerExit:
    """Return the exit of a container that ran so long while the calendar was set by `jump`."""
    return ContainerExit(0, started_at=NOW, finished_at=NOW + timedelta(seconds=ran) + jump)


@pytest.mark.parametrize("jump", JUMPS.values(), ids=JUMPS)
def test_what_passed_is_billed_and_not_what_the_calendar_says(jump: timedelta) -> None:
    assert elapsed_s(BEGUN, seen(30.0, jump)) == 30.0
    assert run_s(told(29.5, jump), BEGUN, seen(30.0, jump), warm=False) == 30.0
    assert run_s(told(29.5, jump), BEGUN, seen(30.0), warm=False) in {30.0, 29.5}  # the engine's calendar alone


def test_an_engine_s_own_times_are_taken_where_they_can_be_true() -> None:
    """Check that the engine's times count where they can be true: they are exact even if the exit was not seen."""
    assert run_s(told(29.5), BEGUN, seen(300.0), warm=False) == 29.5
    waited = ContainerExit(0, started_at=NOW - HOUR, finished_at=NOW + timedelta(seconds=9))
    assert run_s(waited, BEGUN, seen(10.0), warm=True) == 9.0
    assert run_s(ContainerExit(137), BEGUN, seen(10.0), warm=False) is None


@pytest.mark.parametrize(
    "begun", [None, StartTime(NOW), StartTime(NOW, Uptime("another", 1.0)), StartTime(NOW, Uptime("", 1.0))]
)
def test_who_cannot_tell_goes_by_the_calendar_and_never_below_nothing(begun: StartTime | None) -> None:
    assert run_s(told(29.5), begun, seen(30.0), warm=False) == 29.5
    assert run_s(told(29.5, -HOUR), begun, seen(30.0, -HOUR), warm=False) == 0.0
    assert begun is None or elapsed_s(begun, seen(30.0, -HOUR)) == 0.0


@pytest.mark.parametrize("jump", JUMPS.values(), ids=JUMPS)
async def test_a_jump_under_a_running_job_costs_it_nothing(world: RunnerEnvironment, jump: timedelta) -> None:
    """Check a jump under a running job, also after the next runner process has taken it over."""

    async def begun() -> bool:
        return durable_state.read_checkpoint(world.folder / HOST / "ada.j1.1.1").start_time is not None

    before = world.uptime()
    key = await world.submit("waits", policy=Policy(execution_timeout_s=LIMIT_S))
    async with world.run_runner("i1"):
        box = await world.wait_for_container()
        await wait_for(begun)
    world.calendar = jump  # the program has ended with its engine; nobody has told the container
    async with world.run_runner("i2"):
        await world.wait_for_event(key, Adopted)
        write_outputs(box)
        box.finish(0)
        ended = await world.wait_until_ended(key)
    assert ended.status is Status.SUCCEEDED
    assert_lasted(ended, world.uptime().since(before) or 0.0)


def assert_lasted(ended: Job, passed: float) -> None:
    """Check that no time in the record is negative, or more than `passed`."""
    assert ended.queued_at is not None
    assert ended.started_at is not None
    assert ended.finished_at is not None
    assert ended.queued_at <= ended.started_at <= ended.finished_at
    assert 0 <= (ended.usage.run_s or 0) <= passed
    assert (ended.usage.queued_s or 0) >= 0


async def test_a_host_that_was_booted_into_1970_makes_results_of_today(world: RunnerEnvironment) -> None:
    """Check the time of the result: the edge would delete one of 1970 with the next sweep."""
    world.calendar = datetime(1970, 1, 1, tzinfo=UTC) - datetime.now(UTC)
    key = await world.submit("well")
    async with world.run_runner():
        ended = await world.wait_until_ended(key)
        await world.wait_until_clean()
    assert ended.finished_at is not None
    assert ended.finished_at >= ended.created_at
    assert_lasted(ended, 60.0)


async def test_a_back_off_by_a_calendar_that_was_set_back_is_over(world: RunnerEnvironment) -> None:
    tries: list[int] = []

    async def second_time_lucky(box: FakeContainer) -> int:
        tries.append(box.spec.identity.attempt)
        write_outputs(box)
        return 0 if len(tries) > 1 else 75

    world.programs["lucky"] = second_time_lucky
    key = await world.submit("lucky")
    world.calendar = DAY
    async with world.run_runner():
        await world.wait_for_event(key, AttemptReleased)
        world.calendar = timedelta(0)
        world.clock.ahead += 60
        ended = await world.wait_until_ended(key)
    assert (ended.status, tries) == (Status.SUCCEEDED, [1, 2])


def test_nobody_keeps_a_message_for_longer_than_the_longest_back_off() -> None:
    """Check that a client's own date is checked again: the calendar that it is compared with may be set."""
    later = make_job(Status.QUEUED, not_before=NOW + DAY)
    assert decide(later.pointer, entry(later), HOST, NOW) == Nak(START_DELAY_LIMIT_S)
    over = make_job(Status.QUEUED, backoff_until=NOW + DAY)
    assert isinstance(decide(over.pointer, entry(over), HOST, NOW), Start)
    longest = make_job(Status.QUEUED, backoff_until=NOW + JITTERED_BACKOFF_LIMIT)
    assert start_delay_s(longest, NOW) == START_DELAY_LIMIT_S == JITTERED_BACKOFF_LIMIT.total_seconds()
