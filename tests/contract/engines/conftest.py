"""Fixtures of the engines' contract: `host` is each engine in turn."""

import gc
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import pytest

from tests.contract.engines.engine_rigs import (
    INSTALLATION,
    EngineRig,
    docker_engine_rig,
    fake_engine_rig,
    nobody_engine_rig,
    process_engine_rig,
    sandbox_engine_rig,
)
from tests.contract.engines.programs import COMMANDS
from tests.support.docker_images import BASE_IMAGE, build_image, docker_url, echo_image
from tests.support.job_user import why_no_sandbox, why_not_nobody
from tests.support.requirements import require

__all__ = ["docker_url", "echo_image"]

ENGINES = ["memory", "process", "nobody", "sandbox", pytest.param("docker", marks=pytest.mark.docker)]
SIMPLE = {
    "memory": fake_engine_rig,
    "process": process_engine_rig,
    "nobody": nobody_engine_rig,
    "sandbox": sandbox_engine_rig,
}
PROCESSES = ENGINES[1:4]  # as the runner's own user, as nobody where that is root, and in a sandbox


@pytest.fixture(scope="session")
def images(docker_url: str, echo_image: str) -> dict[str, str]:
    """Return the images of the suite by name, as the engine names them."""
    built = {
        name: build_image(
            docker_url,
            f"lamplighter-test-{name}",
            "-",
            given=f"FROM {BASE_IMAGE}\nCMD [{', '.join(map(quoted, command))}]\n",
        )
        for name, command in COMMANDS.items()
    }
    return {"echo": echo_image, **built}


def quoted(word: str) -> str:
    """Quote a word for a Dockerfile's JSON form."""
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


@pytest.fixture(params=ENGINES)
async def host(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EngineRig]:
    name = f"h-{uuid.uuid4().hex[:12]}"
    if request.param == "nobody" and (why := why_not_nobody()):
        pytest.skip(why)
    if request.param == "sandbox":
        require(why_no_sandbox(), "REQUIRE_SANDBOX")
    async with AsyncExitStack() as stack:
        if request.param == "docker":
            url, images = request.getfixturevalue("docker_url"), request.getfixturevalue("images")
            made: AbstractAsyncContextManager[EngineRig] = docker_engine_rig(tmp_path, name, url, images)
        else:
            made = SIMPLE[request.param](tmp_path, name)
        host = await stack.enter_async_context(made)
        try:
            yield host
        finally:
            for left in await host.engine.find(INSTALLATION, name):
                await host.engine.remove(left.handle)


@pytest.fixture
def swept() -> Iterator[None]:
    """Collect what a test leaves open within the test."""
    yield
    gc.collect()
