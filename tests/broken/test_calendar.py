"""The calendar of edge, runner and host is set back and forward under running jobs; that of the broker is not.

Real processes are killed and adopted meanwhile. tests/broken/test_clock.py and tests/runner/test_calendar.py test the
parts.
"""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from schemas.job_view import JobView
from tests.e2e.test_crash import STEPS, assert_ran_once, follow_job
from tests.support.installation import Installation, RunningInstallation, run_installation
from tests.support.job_checks import submit_job, wait_until_clean, wait_until_ended

HOUR_S, DAY_S = 3600.0, 86_400.0
LIMITS = {"execution_timeout_s": 300, "stall_timeout_s": 300}  # longer than the test, and shorter than any jump


class ShiftedInstallation(RunningInstallation, frozen=True):
    """An installation whose calendar is in the file `calendar`."""

    calendar: Path

    def set_ahead(self, ahead_s: float) -> None:
        """Set the calendar ahead of the broker's by so much."""
        new = self.calendar.with_suffix(".new")
        new.write_text(str(ahead_s))
        new.replace(self.calendar)

    async def start_runner(self) -> None:
        await self.installation.start_runner(LAMPLIGHTER_SLOTS="3", CALENDAR=str(self.calendar))


@pytest.fixture
async def shifted(tmp_path: Path, engine: str, engine_url: str | None) -> AsyncIterator[ShiftedInstallation]:
    calendar = tmp_path / "calendar"
    calendar.write_text("0")
    modules = dict.fromkeys(("edge", "runner"), "tests.broken.shifted_clock")
    async with run_installation(Installation(tmp_path, engine, engine_url, modules), CALENDAR=str(calendar)) as running:
        made = ShiftedInstallation(running.installation, running.ann, running.admin, running.bus, calendar)
        await made.start_runner()
        yield made
        print(running.installation.tail())  # noqa: T201 - shown by pytest when the test failed


def assert_lasted(job: JobView, passed_s: float) -> None:
    """Assert that no duration is negative or longer than the time that passed."""
    assert job.queued_at is not None
    assert job.started_at is not None
    assert job.finished_at is not None
    assert job.queued_at <= job.started_at <= job.finished_at
    assert job.usage.run_s is not None
    assert job.usage.queued_s is not None
    assert 0 <= job.usage.run_s <= passed_s
    assert job.usage.queued_s >= 0


@pytest.mark.long(20)
@pytest.mark.timeout(180)
async def test_a_calendar_that_is_set_under_a_running_job_costs_it_nothing(
    shifted: ShiftedInstallation, tmp_path: Path
) -> None:
    """A restarted runner continues to count the job's time as before."""
    given, began = tmp_path / "given.txt", time.monotonic()
    given.write_text("as it was given")
    job = await submit_job(shifted, LIMITS, text="hello", steps=STEPS, seconds=10, file=given)
    async with follow_job(shifted, job) as followed:
        await followed.wait_for_step(3)
        astride = await submit_job(shifted, LIMITS, steps=4, seconds=1)
        shifted.set_ahead(-DAY_S)
        behind = await submit_job(shifted, LIMITS)
        await followed.wait_for_step(12)
        shifted.set_ahead(-HOUR_S)
        await followed.wait_for_step(18)
        shifted.set_ahead(HOUR_S)
        await followed.wait_for_step(24)
        shifted.set_ahead(DAY_S)
        await shifted.installation.runners["gpu-1"].kill()
        await shifted.start_runner()
    await assert_ran_once(shifted, job, followed, adopted=1)
    jobs = [await wait_until_ended(shifted.ann, one.id) for one in (job, astride, behind)]
    for one in jobs:
        assert one.status == "succeeded"
        assert_lasted(one, time.monotonic() - began)
    assert jobs[0].output is not None
    (file,) = jobs[0].output.files
    assert (await shifted.ann.download(jobs[0], file.name, tmp_path / "got.txt")).read_text() == "as it was given"
    assert (await shifted.admin.usage()).jobs == 3
    await wait_until_clean(shifted, timeout_s=60)  # the message is redelivered when its lease expires
