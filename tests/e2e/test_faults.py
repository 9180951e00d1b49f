"""Faulty jobs on real engines: each fault ends with the code of the table, and does not harm the runner."""

from collections.abc import Mapping
from typing import Any

import pytest
from msgspec import Struct

from schemas.events import JOB_LOG_LIMIT_BYTES, AttemptReleased, LogMessage
from schemas.job import JobKey
from schemas.lifecycle import FAILURES, is_retryable
from tests.support.installation import RunningInstallation
from tests.support.job_checks import (
    LONG_TIMEOUTS,
    assert_one_end_a_round,
    events_of,
    read_history,
    submit_job,
    wait_until_clean,
    wait_until_ended,
)
from tests.support.wait import wait_for

RSS_MB = 200
LOG_BYTES = 10_000_000 + 200  # the first and last 5 MB, and the line that says what is omitted


class Fault(Struct, frozen=True):
    """An input that fails, the error code it must end with, and the number of attempts."""

    given: Mapping[str, Any]
    code: str
    attempts: int
    policy: Mapping[str, Any] = {}
    endpoint: str = "echo"


TWICE = {"max_attempts": 2}
FAULTS = {
    "exit 64": Fault({"behave": "exit", "exit": 64}, "bad_job", 1),
    "exit 65": Fault({"behave": "exit", "exit": 65}, "bad_input", 1),
    "exit 70": Fault({"behave": "exit", "exit": 70}, "internal", 2, TWICE),
    "exit 75": Fault({"behave": "exit", "exit": 75}, "internal", 2, TWICE),
    "exit 0 without a result": Fault({"behave": "exit", "exit": 0}, "output_missing", 2, TWICE),
    "half a file and exit 0": Fault({"behave": "partial", "exit": 0}, "output_missing", 1, {"max_attempts": 1}),
    "segmentation fault": Fault({"behave": "segv"}, "internal", 1, {"max_attempts": 1}),
    "out of memory": Fault({"behave": "oom"}, "out_of_memory", 2),
    "a child out of memory, exit 0": Fault({"behave": "child_oom", "exit": 0}, "out_of_memory", 2),
    "a child out of memory, exit 9": Fault({"behave": "child_oom", "exit": 9}, "out_of_memory", 2),
    "too slow": Fault({"behave": "hang"}, "execution_timeout", 1, {"execution_timeout_s": 2}),
    "too slow, deaf to TERM": Fault({"behave": "ignore_term"}, "execution_timeout", 1, {"execution_timeout_s": 2}),
    "stalled": Fault({"behave": "hang"}, "stalled", 2, {"stall_timeout_s": 2, "max_attempts": 2}),
    "output too large": Fault({}, "output_too_large", 1, endpoint="large"),
}


@pytest.fixture(scope="module")
async def fault_ids(
    installation_with_runner: RunningInstallation, engine: str, request: pytest.FixtureRequest
) -> Mapping[str, str]:
    """Submit all faults at once; return their ids."""
    if engine == "docker":
        request.getfixturevalue("large_image")
    return {
        name: (await submit_job(installation_with_runner, dict(fault.policy), fault.endpoint, **fault.given)).id
        for name, fault in FAULTS.items()
    }


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_ends_with_its_code(shared_running: RunningInstallation, fault_ids: Mapping[str, str], name: str):
    fault = FAULTS[name]
    done = await wait_until_ended(shared_running.ann, fault_ids[name])
    assert done.error is not None
    assert (done.status, done.error.code, done.attempt) == ("failed", fault.code, fault.attempts), done.error
    row = FAILURES[fault.code]
    assert (done.error.blame, done.error.retryable) == (row.blame, is_retryable(fault.code, row))
    assert done.output is None
    entries = await read_history(shared_running, done.id)
    assert [event.code for event in events_of(entries, AttemptReleased)] == [fault.code] * (fault.attempts - 1)
    assert_one_end_a_round(entries)


async def released_as(running: RunningInstallation, job_id: str) -> AttemptReleased:
    """Wait for the job's first release, cancel the job, and return the release."""

    async def released() -> list[AttemptReleased]:
        return events_of(await read_history(running, job_id), AttemptReleased)

    found: list[AttemptReleased] = await wait_for(released, timeout_s=30)
    await running.ann.cancel(job_id)
    return found[0]


async def test_an_unusable_gpu_costs_no_attempt(shared_running: RunningInstallation):
    job = await submit_job(shared_running, behave="exit", exit=69)
    release = await released_as(shared_running, job.id)
    assert (release.code, release.charged) == ("gpu_unhealthy", False)


async def test_an_image_that_is_nowhere_is_the_host_s_fault_and_its_jobs_wait(
    shared_running: RunningInstallation, engine: str
):
    job = await submit_job(shared_running, endpoint="missing")

    async def waits_for_its_image() -> bool:
        return (await shared_running.ann.job(job.id)).reason == "image_missing"

    await wait_for(waits_for_its_image, timeout_s=30)
    if engine == "docker":  # its images are known, so the job is not even started
        await shared_running.ann.cancel(job.id)
        assert events_of(await read_history(shared_running, job.id), AttemptReleased) == []
    else:
        release = await released_as(shared_running, job.id)
        assert (release.code, release.charged) == ("image_missing", False)
    assert (await wait_until_ended(shared_running.ann, job.id)).status == "cancelled"


async def test_a_flood_is_kept_in_bounds(shared_running: RunningInstallation):
    """Run a job that writes 100 MB to stdout."""
    job = await submit_job(shared_running, LONG_TIMEOUTS, behave="flood", text="above water")
    done = await wait_until_ended(shared_running.ann, job.id)
    assert (done.status, done.output.data["text"], done.attempt) == ("succeeded", "above water", 1)
    log = await shared_running.ann.logs(job.id)
    assert LOG_BYTES / 4 < len(log.encode()) <= LOG_BYTES
    assert "step 10 of 10" in log
    notes = await shared_running.bus.feed.messages(JobKey("ann", job.id))
    said = sum(len(note.text.encode()) for note in notes if isinstance(note, LogMessage))
    assert JOB_LOG_LIMIT_BYTES / 2 < said <= JOB_LOG_LIMIT_BYTES


async def test_a_line_without_an_end_is_no_message_and_no_harm(shared_running: RunningInstallation):
    job = await submit_job(shared_running, LONG_TIMEOUTS, behave="no_newline", text="after 8 MiB of x")
    done = await wait_until_ended(shared_running.ann, job.id)
    assert (done.status, done.output.data["text"]) == ("succeeded", "after 8 MiB of x")
    assert "step 10 of 10" in await shared_running.ann.logs(job.id)


async def test_after_all_that_the_runner_is_small_and_nothing_is_left(
    shared_running: RunningInstallation, fault_ids: Mapping[str, str]
):
    for job_id in fault_ids.values():
        await wait_until_ended(shared_running.ann, job_id)
    await wait_until_clean(shared_running)
    assert shared_running.installation.runners["gpu-1"].peak_rss_mb() <= RSS_MB
    assert (
        await wait_until_ended(shared_running.ann, (await submit_job(shared_running, text="fine")).id)
    ).status == "succeeded"
