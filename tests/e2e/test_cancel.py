"""Cancel and retry at every moment: each round ends once, and nothing is left of a stopped job."""

import random
import time

import anyio

from schemas.events import Failed, Retried, Started
from schemas.job import Status
from tests.e2e.conftest import SLOTS
from tests.support.installation import RunningInstallation
from tests.support.job_checks import (
    LONG_TIMEOUTS,
    allow_problems,
    assert_one_end_a_round,
    events_of,
    read_history,
    submit_job,
    wait_until_clean,
    wait_until_ended,
    wait_until_running,
)
from tests.support.wait import wait_for

GRACE_S = 3.0  # timeouts.grace_s of echo
CLEARED_S = 50.0  # a container that is not stopped stays for the 600 s of its job
RACERS = 16
SPREAD_S = 2.0


async def cancel_and_time_removal(running: RunningInstallation, job_id: str) -> float:
    """Cancel a running job; return the seconds until its container is gone."""
    await wait_until_running(running, job_id)
    asked = time.monotonic()
    await running.ann.cancel(job_id)

    async def gone() -> bool:
        return all(found.identity.job != job_id for found in await running.installation.containers())

    await wait_for(gone, timeout_s=GRACE_S + CLEARED_S)
    return time.monotonic() - asked


async def test_a_queued_job_is_cancelled_at_once_and_never_runs(shared_running: RunningInstallation):
    occupants = [await submit_job(shared_running, LONG_TIMEOUTS, behave="hang") for _ in range(SLOTS)]
    for occupant in occupants:
        await wait_until_running(shared_running, occupant.id)
    job = await submit_job(shared_running, text="never")
    assert (await shared_running.ann.cancel(job.id)).status == "cancelled"
    assert job.id not in {pointer.id for pointer in await shared_running.bus.job_queue.list_pending()}
    for occupant in occupants:
        await shared_running.ann.cancel(occupant.id)
    await wait_until_clean(shared_running)
    assert [entry.record.job.status for entry in await read_history(shared_running, job.id)] == ["queued", "cancelled"]


async def test_a_running_job_is_cancelled_and_its_container_gone(shared_running: RunningInstallation):
    job = await submit_job(shared_running, LONG_TIMEOUTS, behave="hang")
    assert await cancel_and_time_removal(shared_running, job.id) < GRACE_S + CLEARED_S
    done = await wait_until_ended(shared_running.ann, job.id)
    assert (done.status, done.attempt, done.error) == ("cancelled", 1, None)
    assert_one_end_a_round(await read_history(shared_running, job.id))


async def test_a_job_that_ignores_sigterm_is_killed_after_its_grace(shared_running: RunningInstallation):
    job = await submit_job(shared_running, LONG_TIMEOUTS, behave="ignore_term")
    assert GRACE_S <= await cancel_and_time_removal(shared_running, job.id) < GRACE_S + CLEARED_S
    assert (await wait_until_ended(shared_running.ann, job.id)).status == "cancelled"
    await wait_until_clean(shared_running)


async def test_a_cancel_that_races_the_finish_leaves_one_end(shared_running: RunningInstallation):
    dice = random.Random(2)
    jobs = [await submit_job(shared_running, steps=3, seconds=round(dice.uniform(0, 0.3), 2)) for _ in range(RACERS)]

    async def cancel(job_id: str, at_its_end: bool, after_s: float) -> None:
        if at_its_end:
            await wait_until_running(shared_running, job_id)
        await anyio.sleep(after_s)  # the test needs this exact moment
        await allow_problems(shared_running.ann.cancel(job_id), "job_final")

    async with anyio.create_task_group() as tasks:
        for number, job in enumerate(jobs):
            at_its_end = number % 2 == 0
            tasks.start_soon(cancel, job.id, at_its_end, dice.uniform(0, 0.4 if at_its_end else SPREAD_S))
    statuses = [(await wait_until_ended(shared_running.ann, job.id)).status for job in jobs]
    assert set(statuses) <= {Status.SUCCEEDED, Status.CANCELLED}
    await wait_until_clean(shared_running)
    for job in jobs:
        assert_one_end_a_round(await read_history(shared_running, job.id))


async def test_a_cancel_that_races_a_retry_leaves_one_end_a_round(shared_running: RunningInstallation):
    dice = random.Random(3)
    jobs = [await submit_job(shared_running, behave="exit", exit=65) for _ in range(RACERS // 2)]

    async def race(job_id: str) -> None:
        for _ in range(3):
            await wait_until_ended(shared_running.ann, job_id)
            async with anyio.create_task_group() as tasks:
                for call, code in (
                    (shared_running.ann.retry, "job_not_final"),
                    (shared_running.ann.cancel, "job_final"),
                ) * 2:
                    tasks.start_soon(later, dice.uniform(0, 0.1), call, job_id, code)

    async def later(after_s, call, job_id: str, code: str) -> None:
        await anyio.sleep(after_s)
        await allow_problems(call(job_id), code)

    async with anyio.create_task_group() as tasks:
        for job in jobs:
            tasks.start_soon(race, job.id)
    for job in jobs:
        await wait_until_ended(shared_running.ann, job.id)
    await wait_until_clean(shared_running)
    for job in jobs:
        entries = await read_history(shared_running, job.id)
        assert len(events_of(entries, Retried)) >= 3
        assert_one_end_a_round(entries)


async def test_a_failed_job_retried_at_once_runs_again_with_its_inputs(shared_running: RunningInstallation, tmp_path):
    given = tmp_path / "given.bin"
    given.write_bytes(b"some bytes" * 1000)
    job = await submit_job(shared_running, behave="exit", exit=65, text="again", file=given)
    async for event in shared_running.ann.follow(job.id):
        if event.kind == "state" and event.data["status"] == "failed":
            break
    retried = await shared_running.ann.retry(job.id)  # its first container is still being cleared away
    assert (retried.round, retried.attempt, retried.error, retried.input) == (2, 0, None, job.input)
    again = await wait_until_ended(shared_running.ann, job.id)
    assert (again.round, again.attempt, again.error.code) == (2, 1, "bad_input")
    entries = await read_history(shared_running, job.id)
    assert [event.claim.attempt for event in events_of(entries, Started)] == [1, 1]
    assert len(events_of(entries, Failed)) == 2
    assert_one_end_a_round(entries)
    await wait_until_clean(shared_running)
