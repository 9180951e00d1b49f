"""A whole installation for a bench: real broker, edge and runner processes."""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from msgspec import Struct

from bench.rows import Row
from lamplighter import AsyncClient
from tests.e2e.installation import Installation, ready


class Scene(Struct, frozen=True):
    """What a bench works with."""

    installation: Installation
    client: AsyncClient
    key: str

    @property
    def port(self) -> int:
        """Of the edge."""
        return int(self.installation.url.rsplit(":", 1)[1])


@asynccontextmanager
async def scene(engine: str = "process", **edge: str) -> AsyncIterator[Scene]:
    """A ready edge, with `edge` in its environment; start runners as needed. Writes are synced, as always."""
    url = os.environ.get("DOCKER_HOST") if engine == "docker" else None
    with tempfile.TemporaryDirectory() as folder:
        installation = Installation(Path(folder), engine, url)
        keys = await installation.open()
        try:
            await installation.start_edge(LAMPLIGHTER_RECONCILE_EVERY_S="15", **edge)
            async with AsyncClient(installation.url, keys["ann"], cache=Path(folder) / "digests.json") as client:
                await ready(client)
                yield Scene(installation, client, keys["ann"])
        finally:
            await installation.close()


def without_docker(bench: str) -> Row | None:
    """The row that says why a bench leaves Docker out, or None where there is an engine to ask."""
    if "DOCKER_HOST" in os.environ and shutil.which("docker"):
        return None
    return Row(bench, "docker", 0, "runs", note="skipped: no DOCKER_HOST")
