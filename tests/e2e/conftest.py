"""Installations out of real processes, on the process engine and on Docker.

A test that kills edge or broker takes `lit`, an installation of its own. The others share one in each file: `alone`
for those that start and end runners themselves, `served` for those that only run jobs. All of them come on both
engines; what needs one of them, or does not care which, names it with `@docker_only` or `@process_only`.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec import Struct

from bus.port import Bus
from lamplighter import AsyncClient
from schemas.words import ACTIVE, WAITING
from tests.e2e.installation import ENDPOINTS, Installation, ready
from tests.engine_host import build, docker_url, echo_image

__all__ = ["docker_url", "echo_image"]

LARGE = Path(__file__).parent / "endpoints" / "large"
SLOTS = 4

DOCKER = pytest.param("docker", marks=pytest.mark.docker)
docker_only = pytest.mark.parametrize("engine", [DOCKER], indirect=True, scope="module")
process_only = pytest.mark.parametrize("engine", ["process"], indirect=True, scope="module")


class Lit(Struct, frozen=True):
    """A running edge; `ann` is an ordinary client, `admin` sees everything, `bus` has the edge's rights."""

    installation: Installation
    ann: AsyncClient
    admin: AsyncClient
    bus: Bus


@asynccontextmanager
async def lighted(folder: Path, engine: str, url: str | None, **edge: str) -> AsyncIterator[Lit]:
    """An installation in `folder`; `edge` is more of that process's environment."""
    async with lighting(Installation(folder, engine, url if engine == "docker" else None), **edge) as lit:
        yield lit


@asynccontextmanager
async def lighting(
    installation: Installation, endpoints: Sequence[Path] = ENDPOINTS, **edge: str
) -> AsyncIterator[Lit]:
    """An installation that was made already, with its edge started; it is closed at the end."""
    keys = await installation.open()
    folder = installation.folder
    try:
        await installation.start_edge(endpoints, **edge)
        async with (
            AsyncClient(installation.url, keys["ann"], cache=folder / "ann.json") as ann,
            AsyncClient(installation.url, keys["admin"], cache=folder / "admin.json") as admin,
            installation.bus() as bus,
        ):
            await ready(ann)
            yield Lit(installation, ann, admin, bus)
    finally:
        await installation.close()


@pytest.fixture(scope="session")
def large_image(docker_url: str, echo_image: str) -> str:
    return build(docker_url, "lamplighter-test-large", str(LARGE))


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
async def lit(tmp_path: Path, engine: str, engine_url: str | None) -> AsyncIterator[Lit]:
    """An edge of the test's own, without a runner yet."""
    async with lighted(tmp_path, engine, engine_url) as lit:
        yield lit
        print(lit.installation.tail())  # noqa: T201 - shown by pytest when the test failed


@pytest.fixture(scope="module")
def home_folder(tmp_path_factory: pytest.TempPathFactory, engine: str) -> Path:
    return tmp_path_factory.mktemp(engine)


@pytest.fixture(scope="module")
async def home(
    home_folder: Path, anyio_backend: object, engine: str, engine_url: str | None, endpoints: Sequence[Path]
) -> AsyncIterator[Lit]:
    """The edge that a file shares."""
    async with lighting(Installation(home_folder, engine, engine_url), endpoints) as lit:
        yield lit


@pytest.fixture
async def alone(home: Lit) -> AsyncIterator[Lit]:
    """The file's edge, for a test that starts and ends runners; they and their jobs are gone afterwards."""
    yield home
    print(home.installation.tail())  # noqa: T201
    await home.installation.clear()
    async for job in home.ann.jobs():
        if job.status in WAITING | ACTIVE:
            await home.ann.cancel(job.id)


@pytest.fixture(scope="module")
async def house(home: Lit) -> Lit:
    """With a runner of four slots."""
    await home.installation.start_runner(LAMPLIGHTER_SLOTS=str(SLOTS))
    return home


@pytest.fixture
def served(house: Lit) -> Iterator[Lit]:
    """The file's edge and its runner."""
    yield house
    print(house.installation.tail())  # noqa: T201
