"""SIGTERM of a runner, in two scopes: nothing new is taken; what its engine cannot keep is given back at no cost."""

import time

from bus.interface import Bus
from schemas.events import Adopted, AttemptReleased, Started, Succeeded
from tests.e2e.conftest import docker_only, process_only
from tests.support.installation import RunningInstallation
from tests.support.job_checks import (
    assert_one_end_a_round,
    events_of,
    read_history,
    submit_job,
    wait_until_clean,
    wait_until_ended,
    wait_until_running,
)
from tests.support.wait import wait_for

GRACE_S = 2.0  # LAMPLIGHTER_GRACE_S of tests/support/installation.py
MARGIN_S = 3.0
ONCE = {"max_attempts": 1, "execution_timeout_s": 600}


async def stopped(lit: RunningInstallation) -> float:
    """SIGTERM; seconds until the process has ended."""
    asked = time.monotonic()
    await lit.installation.runners["gpu-1"].stop()
    return time.monotonic() - asked


async def hosts(bus: Bus) -> dict[str, bool]:
    """The hosts that are there, and whether they are draining."""
    return {name: row.value.draining for name, row in (await bus.heartbeats.rows()).items()}


async def waits_for_a_host(lit: RunningInstallation, job_id: str) -> None:
    """The edge looks for hosts every few seconds."""

    async def waits() -> bool:
        job = await lit.ann.job(job_id)
        assert job.status == "queued"
        return job.reason == "host_off_unswitched"

    await wait_for(waits)


async def test_an_idle_runner_goes_at_once_and_says_goodbye(alone: RunningInstallation):
    await alone.installation.start_runner()
    await wait_until_ended(alone.ann, (await submit_job(alone, text="ran")).id)
    assert await stopped(alone) < GRACE_S
    assert await hosts(alone.bus) == {}
    await waits_for_a_host(alone, (await submit_job(alone, text="waits")).id)


async def test_a_job_that_ends_within_the_grace_is_ended(alone: RunningInstallation):
    await alone.installation.start_runner(LAMPLIGHTER_GRACE_S="30")
    job = await submit_job(alone, ONCE, text="in time", seconds=3)
    await wait_until_running(alone, job.id)
    waiting = await submit_job(alone, text="not taken any more")
    assert await stopped(alone) < 20
    done = await wait_until_ended(alone.ann, job.id)
    assert (done.status, done.attempt) == ("succeeded", 1)
    assert (await alone.ann.job(waiting.id)).status == "queued"
    assert len(await read_history(alone, waiting.id)) == 1
    assert await alone.installation.containers() == []


@docker_only  # a container outlives its runner by design
async def test_a_container_goes_on_and_is_adopted_by_the_next_life(alone: RunningInstallation):
    await alone.installation.start_runner()
    job = await submit_job(alone, ONCE, text="hello", seconds=6)
    await wait_until_running(alone, job.id)
    (before,) = await alone.installation.containers()
    assert GRACE_S <= await stopped(alone) < GRACE_S + MARGIN_S
    (after,) = await alone.installation.containers()
    assert (after.handle, after.state) == (before.handle, "running")
    assert (await alone.ann.job(job.id)).status == "running"
    assert await hosts(alone.bus) == {"gpu-1": True}  # it still has a job there, so it does not say goodbye
    await alone.installation.start_runner()
    done = await wait_until_ended(alone.ann, job.id)
    assert (done.status, done.attempt, done.output.data["text"]) == ("succeeded", 1, "hello")
    entries = await read_history(alone, job.id)
    assert [len(events_of(entries, kind)) for kind in (Started, Adopted, AttemptReleased, Succeeded)] == [1, 1, 0, 1]
    assert_one_end_a_round(entries)
    await wait_until_clean(alone)


@process_only  # a child process would be left to nobody
async def test_a_child_process_is_stopped_and_its_job_released_at_no_cost(alone: RunningInstallation):
    await alone.installation.start_runner()
    job = await submit_job(alone, ONCE, text="hello", seconds=5)
    await wait_until_running(alone, job.id)
    assert GRACE_S <= await stopped(alone) < GRACE_S + MARGIN_S
    assert await alone.installation.containers() == []
    assert await hosts(alone.bus) == {}
    await waits_for_a_host(alone, job.id)
    await alone.installation.start_runner()
    done = await wait_until_ended(alone.ann, job.id)
    assert (done.status, done.output.data["text"]) == ("succeeded", "hello")
    entries = await read_history(alone, job.id)
    (release,) = events_of(entries, AttemptReleased)
    assert (release.code, release.charged, release.not_before) == ("drained", False, None)
    assert len(events_of(entries, Started)) == 2
    assert_one_end_a_round(entries)
    await wait_until_clean(alone)


async def test_a_second_signal_changes_nothing(alone: RunningInstallation):
    runner = await alone.installation.start_runner(LAMPLIGHTER_GRACE_S="30")
    job = await submit_job(alone, ONCE, text="in time", seconds=2)
    await wait_until_running(alone, job.id)
    runner.terminate()
    runner.terminate()
    assert await stopped(alone) < 20
    assert (await wait_until_ended(alone.ann, job.id)).status == "succeeded"
