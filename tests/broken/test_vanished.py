"""An image that is removed after it was announced, and jobs that crash every time: other jobs do not wait for them."""

import shutil
from pathlib import Path

import anyio
import pytest

from bus.interface import TableRow
from schemas.events import AttemptReleased, Started
from schemas.host import HostHeartbeat
from tests.e2e.conftest import docker_only, process_only
from tests.support.docker_images import build_image, run_docker
from tests.support.installation import IMAGES, RunningInstallation
from tests.support.job_checks import events_of, read_history, submit_job, wait_until_clean, wait_until_ended
from tests.support.wait import wait_for

FLEETING = "fleeting"
IMAGE = "lamplighter-test-fleeting"
POISONED = {"max_attempts": 2}
OTHERS = 8
SOON = {"LAMPLIGHTER_PACE__IMAGE_MISSING_S": "3", "LAMPLIGHTER_PACE__IMAGE_S": "1"}


@pytest.fixture
def fleeting(tmp_path: Path) -> Path:
    """Return the folder of an endpoint that is echo under another name."""
    folder = tmp_path / FLEETING
    shutil.copytree(IMAGES / "echo", folder)
    declared = (folder / "endpoint.toml").read_text()
    named = declared.replace('name = "echo"', f'name = "{FLEETING}"').replace('"lamplighter-echo"', f'"{IMAGE}"')
    (folder / "endpoint.toml").write_text(named)
    return folder


async def _presence(running: RunningInstallation) -> TableRow[HostHeartbeat] | None:
    return await running.bus.heartbeats.get("gpu-1")


async def assert_missed_and_waited_for(running: RunningInstallation, job_id: str) -> None:
    """Assert that the host reports why, that the job waits for it, and that no release was charged.

    Docker's images are looked at, so there the job may not even have been started.
    """

    async def says_so() -> bool:
        row = await _presence(running)
        return row is not None and row.value.unschedulable.get(FLEETING) == "image_missing"

    await wait_for(says_so, timeout_s=30)
    releases = events_of(await read_history(running, job_id), AttemptReleased)
    assert {(release.code, release.charged) for release in releases} <= {("image_missing", False)}
    assert (await running.ann.job(job_id)).status == "queued"
    assert (
        await wait_until_ended(running.ann, (await submit_job(running, text="another endpoint")).id)
    ).status == "succeeded"


async def announced(running: RunningInstallation, folder: Path) -> None:
    """Start a runner that offers the endpoint; wait until the edge lists it."""
    await running.installation.start_runner(endpoints=(IMAGES / "echo", folder), **SOON)

    async def there() -> bool:
        return (
            f'"{FLEETING}"' in (await running.ann._http.get("/v1/endpoints")).text
            and await _presence(running) is not None
        )

    await wait_for(there, timeout_s=30)


@process_only
async def test_a_folder_that_vanished_is_missed_and_the_job_runs_when_it_is_back(
    shared_idle: RunningInstallation, fleeting: Path
):
    await announced(shared_idle, fleeting)
    away = fleeting.with_name("away")
    await anyio.Path(fleeting).rename(away)
    job = await submit_job(shared_idle, endpoint=FLEETING, text="after all")
    await assert_missed_and_waited_for(shared_idle, job.id)
    await anyio.Path(away).rename(fleeting)
    done = await wait_until_ended(shared_idle.ann, job.id)
    assert (done.status, done.output.data) == ("succeeded", {"text": "after all"})


@docker_only
async def test_an_image_that_vanished_is_missed_and_the_job_runs_when_it_is_back(
    shared_idle: RunningInstallation, fleeting: Path, docker_url: str
):
    # With a label of its own it is another image than the echo one, and does not live on under that name.
    context = ("--label", "of=fleeting", "--file", str(IMAGES / "echo" / "Dockerfile"), str(IMAGES))
    build_image(docker_url, IMAGE, *context)
    await announced(shared_idle, fleeting)
    assert run_docker(docker_url, "image", "rm", IMAGE).returncode == 0
    job = await submit_job(shared_idle, endpoint=FLEETING, text="after all")
    await assert_missed_and_waited_for(shared_idle, job.id)
    build_image(docker_url, IMAGE, *context)
    try:
        done = await wait_until_ended(shared_idle.ann, job.id)
        assert (done.status, done.output.data) == ("succeeded", {"text": "after all"})
    finally:
        run_docker(docker_url, "image", "rm", IMAGE)


@process_only
async def test_a_poisoned_job_ends_after_its_attempts_and_never_blocks_its_pool(shared_idle: RunningInstallation):
    poisoned = [await submit_job(shared_idle, POISONED, behave="segv") for _ in range(2)]
    others = [await submit_job(shared_idle, text=str(number)) for number in range(OTHERS)]
    await shared_idle.installation.start_runner()  # one slot, and the crashing jobs are first in the queue
    for job in others:
        assert (await wait_until_ended(shared_idle.ann, job.id)).status == "succeeded"
    for job in poisoned:
        done = await wait_until_ended(shared_idle.ann, job.id)
        assert done.error is not None
        assert (done.status, done.error.code, done.attempt) == ("failed", "internal", 2)
        assert len(events_of(await read_history(shared_idle, job.id), Started)) == 2
    await wait_until_clean(shared_idle)
