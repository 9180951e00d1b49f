"""Fixtures with installations out of real processes, on the process engine and on Docker.

A test that kills the edge or the broker takes `running`, an installation of its own. The other tests of a file share
one: `shared_idle` is for tests that start and stop runners themselves, `shared_running` for tests that only run jobs.

All fixtures come on both engines. A test that needs one of them, or works the same on both, is marked `@docker_only` or
`@process_only`.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from schemas.job import ACTIVE_STATUSES, WAITING_STATUSES
from tests.support.docker_images import build_image, docker_url, echo_image
from tests.support.installation import (
    ENDPOINTS,
    Installation,
    RunningInstallation,
    run_installation,
    run_new_installation,
)

__all__ = ["docker_url", "echo_image"]

LARGE = Path(__file__).parent / "endpoints" / "large"
SLOTS = 4

DOCKER = pytest.param("docker", marks=pytest.mark.docker)
docker_only = pytest.mark.parametrize("engine", [DOCKER], indirect=True, scope="module")
process_only = pytest.mark.parametrize("engine", ["process"], indirect=True, scope="module")


@pytest.fixture(scope="session")
def large_image(docker_url: str, echo_image: str) -> str:
    return build_image(docker_url, "lamplighter-test-large", str(LARGE))


@pytest.fixture(scope="session")
def endpoint_image(echo_image: str) -> str:
    """Build the image that an edge on Docker needs; a folder with endpoints of its own overrides this."""
    return echo_image


@pytest.fixture(scope="session")
def endpoints() -> Sequence[Path]:
    """Return the endpoint folders of the shared edge; a folder with endpoints of its own overrides this."""
    return ENDPOINTS


@pytest.fixture(scope="module", params=["process", DOCKER])
def engine(request: pytest.FixtureRequest) -> str:
    if request.param == "docker":
        request.getfixturevalue("endpoint_image")
    return str(request.param)


@pytest.fixture(scope="module")
def engine_url(engine: str, request: pytest.FixtureRequest) -> str | None:
    return request.getfixturevalue("docker_url") if engine == "docker" else None


@pytest.fixture
async def running(tmp_path: Path, engine: str, engine_url: str | None) -> AsyncIterator[RunningInstallation]:
    """Run an edge for this test alone; no runner is started."""
    async with run_new_installation(tmp_path, engine, engine_url) as running:
        yield running
        print(running.installation.tail())  # noqa: T201 - shown by pytest when the test failed


@pytest.fixture(scope="module")
def home_folder(tmp_path_factory: pytest.TempPathFactory, engine: str) -> Path:
    return tmp_path_factory.mktemp(engine)


@pytest.fixture(scope="module")
async def shared_installation(
    home_folder: Path, anyio_backend: object, engine: str, engine_url: str | None, endpoints: Sequence[Path]
) -> AsyncIterator[RunningInstallation]:
    """Run the edge that the tests of a file share."""
    async with run_installation(Installation(home_folder, engine, engine_url), endpoints) as running:
        yield running


@pytest.fixture
async def shared_idle(shared_installation: RunningInstallation) -> AsyncIterator[RunningInstallation]:
    """Lend the shared edge to a test that starts runners; remove its runners and jobs afterwards."""
    yield shared_installation
    print(shared_installation.installation.tail())  # noqa: T201
    await shared_installation.installation.clear()
    async for job in shared_installation.ann.jobs():
        if job.status in WAITING_STATUSES | ACTIVE_STATUSES:
            await shared_installation.ann.cancel(job.id)


@pytest.fixture(scope="module")
async def installation_with_runner(shared_installation: RunningInstallation) -> RunningInstallation:
    """Start a runner with four slots beside the shared edge."""
    await shared_installation.installation.start_runner(LAMPLIGHTER_SLOTS=str(SLOTS))
    return shared_installation


@pytest.fixture
def shared_running(installation_with_runner: RunningInstallation) -> Iterator[RunningInstallation]:
    """Lend the shared edge and its runner to a test."""
    yield installation_with_runner
    print(installation_with_runner.installation.tail())  # noqa: T201
