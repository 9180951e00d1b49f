"""Fixtures of the engines' contract: `host` is each engine in turn."""

import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.contract.engines.hosts import INSTALLATION, Host, docker_host, memory_host, process_host
from tests.contract.engines.programs import COMMANDS
from tests.engine_host import BASE, build, docker_url, echo_image

__all__ = ["docker_url", "echo_image"]

ENGINES = ["memory", "process", pytest.param("docker", marks=pytest.mark.docker)]


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
    async with AsyncExitStack() as stack:
        if request.param == "docker":
            url, images = request.getfixturevalue("docker_url"), request.getfixturevalue("images")
            made = docker_host(tmp_path, name, url, images)
        else:
            made = {"memory": memory_host, "process": process_host}[request.param](tmp_path, name)
        host = await stack.enter_async_context(made)
        try:
            yield host
        finally:
            for left in await host.engine.find(INSTALLATION, name):
                await host.engine.remove(left.handle)
