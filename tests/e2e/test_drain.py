"""Drain a runner with SIGTERM: it takes no new job, and returns at no cost what its engine cannot keep running."""

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
MARGIN_S = 30.0  # a runner that hangs takes longer
ONCE = {"max_attempts": 1, "execution_timeout_s": 600}


async def stop_and_time(running: RunningInstallation) -> float:
    """Send SIGTERM; return the seconds until the process has ended."""
    asked = time.monotonic()
    await running.installation.runners["gpu-1"].stop()
    return time.monotonic() - asked


async def hosts(bus: Bus) -> dict[str, bool]:
    """Return which hosts have a heartbeat, and whether they drain."""
    return {name: row.value.draining for name, row in (await bus.heartbeats.rows()).items()}


async def waits_for_a_host(running: RunningInstallation, job_id: str) -> None:
    """Wait until the edge has noticed that the host is gone; it polls every few seconds."""

    async def waits() -> bool:
        job = await running.ann.job(job_id)
        assert job.status == "queued"
        return job.reason == "host_off_unswitched"

    await wait_for(waits)


async def test_an_idle_runner_goes_at_once_and_says_goodbye(shared_idle: RunningInstallation):
    await shared_idle.installation.start_runner(LAMPLIGHTER_GRACE_S="90")
    await wait_until_ended(shared_idle.ann, (await submit_job(shared_idle, text="ran")).id)
    assert await stop_and_time(shared_idle) < 60  # it does not wait for its grace
    assert await hosts(shared_idle.bus) == {}
    await waits_for_a_host(shared_idle, (await submit_job(shared_idle, text="waits")).id)


async def test_a_job_that_ends_within_the_grace_is_ended(shared_idle: RunningInstallation):
    await shared_idle.installation.start_runner(LAMPLIGHTER_GRACE_S="90")
    job = await submit_job(shared_idle, ONCE, text="in time", seconds=3)
    await wait_until_running(shared_idle, job.id)
    waiting = await submit_job(shared_idle, text="not taken any more")
    assert await stop_and_time(shared_idle) < 60  # it does not wait for the rest of its grace
    done = await wait_until_ended(shared_idle.ann, job.id)
    assert (done.status, done.attempt) == ("succeeded", 1)
    assert (await shared_idle.ann.job(waiting.id)).status == "queued"
    assert len(await read_history(shared_idle, waiting.id)) == 1
    assert await shared_idle.installation.containers() == []


@docker_only  # a container outlives its runner by design
async def test_a_container_goes_on_and_is_adopted_by_the_next_life(shared_idle: RunningInstallation):
    await shared_idle.installation.start_runner()
    job = await submit_job(shared_idle, ONCE, text="hello", seconds=6)
    await wait_until_running(shared_idle, job.id)
    (before,) = await shared_idle.installation.containers()
    assert GRACE_S <= await stop_and_time(shared_idle) < GRACE_S + MARGIN_S
    (after,) = await shared_idle.installation.containers()
    assert (after.handle, after.state) == (before.handle, "running")
    assert (await shared_idle.ann.job(job.id)).status == "running"
    assert await hosts(shared_idle.bus) == {"gpu-1": True}  # it still has a job there, so it keeps its heartbeat
    await shared_idle.installation.start_runner()
    done = await wait_until_ended(shared_idle.ann, job.id)
    assert (done.status, done.attempt, done.output.data["text"]) == ("succeeded", 1, "hello")
    entries = await read_history(shared_idle, job.id)
    assert [len(events_of(entries, kind)) for kind in (Started, Adopted, AttemptReleased, Succeeded)] == [1, 1, 0, 1]
    assert_one_end_a_round(entries)
    await wait_until_clean(shared_idle)


@process_only  # nothing would watch over a child process
async def test_a_child_process_is_stopped_and_its_job_released_at_no_cost(shared_idle: RunningInstallation):
    await shared_idle.installation.start_runner()
    job = await submit_job(shared_idle, ONCE, text="hello", seconds=5)
    await wait_until_running(shared_idle, job.id)
    assert GRACE_S <= await stop_and_time(shared_idle) < GRACE_S + MARGIN_S
    assert await shared_idle.installation.containers() == []
    assert await hosts(shared_idle.bus) == {}
    await waits_for_a_host(shared_idle, job.id)
    await shared_idle.installation.start_runner()
    done = await wait_until_ended(shared_idle.ann, job.id)
    assert (done.status, done.output.data["text"]) == ("succeeded", "hello")
    entries = await read_history(shared_idle, job.id)
    (release,) = events_of(entries, AttemptReleased)
    assert (release.code, release.charged, release.not_before) == ("drained", False, None)
    assert len(events_of(entries, Started)) == 2
    assert_one_end_a_round(entries)
    await wait_until_clean(shared_idle)


async def test_a_second_signal_changes_nothing(shared_idle: RunningInstallation):
    runner = await shared_idle.installation.start_runner(LAMPLIGHTER_GRACE_S="90")
    job = await submit_job(shared_idle, ONCE, text="in time", seconds=2)
    await wait_until_running(shared_idle, job.id)
    runner.terminate()
    runner.terminate()
    assert await stop_and_time(shared_idle) < 60
    assert (await wait_until_ended(shared_idle.ann, job.id)).status == "succeeded"
