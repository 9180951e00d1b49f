"""Installations out of real processes, on the process engine and on Docker.

A test that kills edge or broker takes `lit`, an installation of its own. The others share one in each file: `alone`
for those that start and end runners themselves, `served` for those that only run jobs. All of them come on both
engines; what needs one of them, or does not care which, names it with `@docker_only` or `@process_only`.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from schemas.status import ACTIVE_STATUSES, WAITING_STATUSES
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
    """The image that has to be there before an edge on Docker; a folder with endpoints of its own replaces it."""
    return echo_image


@pytest.fixture(scope="session")
def endpoints() -> Sequence[Path]:
    """What the shared edge offers; a folder with endpoints of its own replaces it."""
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
async def lit(tmp_path: Path, engine: str, engine_url: str | None) -> AsyncIterator[RunningInstallation]:
    """An edge of the test's own, without a runner yet."""
    async with run_new_installation(tmp_path, engine, engine_url) as lit:
        yield lit
        print(lit.installation.tail())  # noqa: T201 - shown by pytest when the test failed


@pytest.fixture(scope="module")
def home_folder(tmp_path_factory: pytest.TempPathFactory, engine: str) -> Path:
    return tmp_path_factory.mktemp(engine)


@pytest.fixture(scope="module")
async def home(
    home_folder: Path, anyio_backend: object, engine: str, engine_url: str | None, endpoints: Sequence[Path]
) -> AsyncIterator[RunningInstallation]:
    """The edge that a file shares."""
    async with run_installation(Installation(home_folder, engine, engine_url), endpoints) as lit:
        yield lit


@pytest.fixture
async def alone(home: RunningInstallation) -> AsyncIterator[RunningInstallation]:
    """The file's edge, for a test that starts and ends runners; they and their jobs are gone afterwards."""
    yield home
    print(home.installation.tail())  # noqa: T201
    await home.installation.clear()
    async for job in home.ann.jobs():
        if job.status in WAITING_STATUSES | ACTIVE_STATUSES:
            await home.ann.cancel(job.id)


@pytest.fixture(scope="module")
async def house(home: RunningInstallation) -> RunningInstallation:
    """With a runner of four slots."""
    await home.installation.start_runner(LAMPLIGHTER_SLOTS=str(SLOTS))
    return home


@pytest.fixture
def served(house: RunningInstallation) -> Iterator[RunningInstallation]:
    """The file's edge and its runner."""
    yield house
    print(house.installation.tail())  # noqa: T201
