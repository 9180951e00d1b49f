"""An image that vanished after it was announced, and jobs that no host survives: nobody else waits for them."""

import shutil
from pathlib import Path

import anyio
import pytest

from bus.port import Row
from schemas.events import Released, Started
from schemas.host import Presence
from tests.e2e.conftest import Lit, docker_only, process_only
from tests.e2e.installation import IMAGES, until
from tests.e2e.looking import ended, events, history, nothing_left, submit
from tests.engine_host import build, docker

FLEETING = "fleeting"
IMAGE = "lamplighter-test-fleeting"
POISONED = {"max_attempts": 2}
OTHERS = 8
SOON = {"LAMPLIGHTER_PACE__IMAGE_MISSING_S": "3"}


@pytest.fixture
def fleeting(tmp_path: Path) -> Path:
    """The folder of an endpoint that is echo under another name."""
    folder = tmp_path / FLEETING
    shutil.copytree(IMAGES / "echo", folder)
    declared = (folder / "endpoint.toml").read_text()
    named = declared.replace('name = "echo"', f'name = "{FLEETING}"').replace('"lamplighter-echo"', f'"{IMAGE}"')
    (folder / "endpoint.toml").write_text(named)
    return folder


async def _presence(lit: Lit) -> Row[Presence] | None:
    return await lit.bus.hosts.get("gpu-1")


async def assert_missed_and_waited_for(lit: Lit, job_id: str) -> None:
    """It was given back for nothing, the host says why, and the job waits with that reason."""

    async def says_so() -> bool:
        row = await _presence(lit)
        return row is not None and row.value.cannot.get(FLEETING) == "image_missing"

    await until(says_so, 30)
    release = events(await history(lit, job_id), Released)[0]
    assert (release.code, release.charged) == ("image_missing", False)
    assert (await ended(lit.ann, (await submit(lit, text="another endpoint")).id)).status == "succeeded"


async def announced(lit: Lit, folder: Path) -> None:
    """A runner that offers it, and the edge has heard so."""
    await lit.installation.start_runner(endpoints=(IMAGES / "echo", folder), **SOON)

    async def there() -> bool:
        return f'"{FLEETING}"' in (await lit.ann._http.get("/v1/endpoints")).text and await _presence(lit) is not None

    await until(there, 30)


@process_only
async def test_a_folder_that_vanished_is_missed_and_the_job_runs_when_it_is_back(alone: Lit, fleeting: Path):
    await announced(alone, fleeting)
    away = fleeting.with_name("away")
    await anyio.Path(fleeting).rename(away)
    job = await submit(alone, endpoint=FLEETING, text="after all")
    await assert_missed_and_waited_for(alone, job.id)
    await anyio.Path(away).rename(fleeting)
    done = await ended(alone.ann, job.id)
    assert (done.status, done.output.data) == ("succeeded", {"text": "after all"})


@docker_only
async def test_an_image_that_vanished_is_missed_and_the_job_runs_when_it_is_back(
    alone: Lit, fleeting: Path, docker_url: str
):
    context = ("--file", str(IMAGES / "echo" / "Dockerfile"), str(IMAGES))
    build(docker_url, IMAGE, *context)
    await announced(alone, fleeting)
    assert docker(docker_url, "image", "rm", IMAGE).returncode == 0
    job = await submit(alone, endpoint=FLEETING, text="after all")
    await assert_missed_and_waited_for(alone, job.id)
    build(docker_url, IMAGE, *context)
    try:
        done = await ended(alone.ann, job.id)
        assert (done.status, done.output.data) == ("succeeded", {"text": "after all"})
    finally:
        docker(docker_url, "image", "rm", IMAGE)


@process_only
async def test_a_poisoned_job_ends_after_its_attempts_and_never_blocks_its_pool(alone: Lit):
    poisoned = [await submit(alone, POISONED, behave="segv") for _ in range(2)]
    others = [await submit(alone, text=str(number)) for number in range(OTHERS)]
    await alone.installation.start_runner()  # one slot, and the poisoned ones are first in line
    for job in others:
        assert (await ended(alone.ann, job.id)).status == "succeeded"
    for job in poisoned:
        done = await ended(alone.ann, job.id)
        assert done.error is not None
        assert (done.status, done.error.code, done.attempt) == ("failed", "internal", 2)
        assert len(events(await history(alone, job.id), Started)) == 2
    await nothing_left(alone)
