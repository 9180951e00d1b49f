"""H2, M4: all hostile jobs on one host, beside jobs that behave and must not notice; nothing of them is left."""

from collections.abc import AsyncIterator

import pytest
from msgspec import Struct

from schemas.job_view import JobView
from tests.attack.conftest import ENDPOINT_DIRS
from tests.attack.hostile_jobs import ATTACKS, OK
from tests.support.installation import RunningInstallation, ServiceProcess
from tests.support.job_checks import submit_job, wait_until_clean, wait_until_ended

SLOTS = 6
EVERY = 8  # a job that behaves is submitted after so many that do not
PATIENCE_S = 240.0

pytestmark = pytest.mark.timeout(PATIENCE_S + 60)


class Aftermath(Struct, frozen=True):
    """How every job ended. `runner`: the process that ran them."""

    running: RunningInstallation
    hostile: dict[str, JobView]
    good: list[JobView]
    runner: ServiceProcess


@pytest.fixture(scope="module")
async def aftermath(shared_installation: RunningInstallation) -> AsyncIterator[Aftermath]:
    """Run all hostile jobs once."""
    runner = await shared_installation.installation.start_runner(endpoints=ENDPOINT_DIRS, LAMPLIGHTER_SLOTS=str(SLOTS))
    given = shared_installation.installation.folder / "given.txt"
    given.write_text("what a job that behaves gives back")
    hostile, good = {}, []
    for number, (name, attack) in enumerate(ATTACKS.items()):
        hostile[name] = await submit_job(shared_installation, dict(attack.policy), "hostile", code=attack.code)
        if number % EVERY == 0:
            good.append(await submit_job(shared_installation, text=name, file=given))
    good.append(await submit_job(shared_installation, text="last", file=given))
    try:
        yield Aftermath(
            shared_installation,
            {name: await wait_until_ended(shared_installation.ann, job.id) for name, job in hostile.items()},
            [await wait_until_ended(shared_installation.ann, job.id) for job in good],
            runner,
        )
    finally:
        print(shared_installation.installation.tail())  # noqa: T201 - shown by pytest when a test failed


def test_there_are_thirty_at_least() -> None:
    assert len(ATTACKS) >= 30


@pytest.mark.parametrize("name", ATTACKS)
async def test_a_hostile_job_ends_as_it_should(aftermath: Aftermath, name: str) -> None:
    job = aftermath.hostile[name]
    assert (job.error.code if job.error else str(job.status)) in ATTACKS[name].ends, job.error


async def test_jobs_that_behave_notice_nothing(aftermath: Aftermath) -> None:
    assert [(job.status, job.attempt, len(job.output.files) if job.output else 0) for job in aftermath.good] == [
        (OK, 1, 1)
    ] * len(aftermath.good)


async def test_the_runner_that_ran_them_is_alive_and_nothing_is_left(aftermath: Aftermath) -> None:
    await wait_until_clean(aftermath.running)
    assert aftermath.runner.is_running
    log = aftermath.runner.log.read_text(errors="replace")
    assert "execution_crashed" not in log
    assert "folder_removal_failed" not in log


async def test_no_job_is_blamed_on_the_host(aftermath: Aftermath) -> None:
    blamed = {name: job.error.blame for name, job in aftermath.hostile.items() if job.error}
    assert set(blamed.values()) <= {"client", "image"}
