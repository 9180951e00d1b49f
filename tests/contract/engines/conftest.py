"""Fixtures of the engines' contract: `host` is each engine in turn."""

import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.contract.engines.hosts import INSTALLATION, Host, docker_host, memory_host, nobody_host, process_host
from tests.contract.engines.programs import COMMANDS
from tests.engine_host import BASE, build, docker_url, echo_image
from tests.job_user import cannot_run_as_nobody

__all__ = ["docker_url", "echo_image"]

ENGINES = ["memory", "process", "nobody", pytest.param("docker", marks=pytest.mark.docker)]
SIMPLE = {"memory": memory_host, "process": process_host, "nobody": nobody_host}
PROCESSES = ENGINES[1:3]  # as the runner's own user, and as nobody where that is root


@pytest.fixture(scope="session")
def images(docker_url: str, echo_image: str) -> dict[str, str]:
    """The suite's names for images, and the engine's."""
    built = {
        name: build(
            docker_url,
            f"lamplighter-test-{name}",
            "-",
            given=f"FROM {BASE}\nCMD [{', '.join(map(quoted, command))}]\n",
        )
        for name, command in COMMANDS.items()
    }
    return {"echo": echo_image, **built}


def quoted(word: str) -> str:
    """For a Dockerfile's JSON form."""
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


@pytest.fixture(params=ENGINES)
async def host(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Host]:
    name = f"h-{uuid.uuid4().hex[:12]}"
    if request.param == "nobody" and (why := cannot_run_as_nobody()):
        pytest.skip(why)
    async with AsyncExitStack() as stack:
        if request.param == "docker":
            url, images = request.getfixturevalue("docker_url"), request.getfixturevalue("images")
            made = docker_host(tmp_path, name, url, images)
        else:
            made = SIMPLE[request.param](tmp_path, name)
        host = await stack.enter_async_context(made)
        try:
            yield host
        finally:
            for left in await host.engine.find(INSTALLATION, name):
                await host.engine.remove(left.handle)
