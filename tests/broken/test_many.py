"""A short run of `python -m tests.broken.job_flood` for CI."""

from collections.abc import AsyncIterator

import pytest

from tests.broken.job_flood import SLOTS, run_flood
from tests.support.installation import IMAGES, RunningInstallation, run_new_installation

JOBS = 300


@pytest.fixture
async def busy(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningInstallation]:
    async with run_new_installation(tmp_path_factory.mktemp("many"), "process", None) as running:
        await running.installation.start_runner(endpoints=(IMAGES / "echo",), LAMPLIGHTER_SLOTS=str(SLOTS))
        yield running
        print(running.installation.tail())  # noqa: T201 - shown by pytest when the test failed


@pytest.mark.long(44)
@pytest.mark.timeout(600)
async def test_of_300_jobs_the_crashing_twentieth_fails_and_all_others_succeed(busy: RunningInstallation):
    assert (await run_flood(busy, JOBS)).wrong(JOBS) == {}
