"""Installations out of real processes, on the process engine and on Docker."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec import Struct

from lamplighter import AsyncClient
from tests.e2e.installation import Installation, ready
from tests.engine_host import docker_url, echo_image

__all__ = ["docker_url", "echo_image"]


class Lit(Struct, frozen=True):
    """A running edge without a runner yet; `ann` is an ordinary client, `admin` sees everything."""

    installation: Installation
    ann: AsyncClient
    admin: AsyncClient


@pytest.fixture(params=["process", pytest.param("docker", marks=pytest.mark.docker)])
def engine(request: pytest.FixtureRequest) -> str:
    if request.param == "docker":
        request.getfixturevalue("echo_image")
    return str(request.param)


@pytest.fixture
async def lit(tmp_path: Path, engine: str, request: pytest.FixtureRequest) -> AsyncIterator[Lit]:
    url = request.getfixturevalue("docker_url") if engine == "docker" else None
    installation = Installation(tmp_path, engine, url)
    keys = await installation.open()
    try:
        await installation.start_edge()
        async with (
            AsyncClient(installation.url, keys["ann"], cache=tmp_path / "ann.json") as ann,
            AsyncClient(installation.url, keys["admin"], cache=tmp_path / "admin.json") as admin,
        ):
            await ready(ann)
            yield Lit(installation, ann, admin)
    finally:
        await installation.close()
        print(installation.tail())  # noqa: T201 - shown by pytest when the test failed
