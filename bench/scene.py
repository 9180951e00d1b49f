"""A whole installation for a bench: real broker, edge and runner processes."""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from msgspec import Struct

from bench.rows import Row
from lamplighter import AsyncClient
from lamplighter.wire import Call, plain
from schemas.events import Recorded, Submitted
from schemas.job import Job
from schemas.words import Status
from tests.e2e.installation import Installation, ready, until

AT_ONCE = 64
METRICS = Call(method="GET", path="/metrics", read=plain)


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


async def fill(made: Scene, jobs: Iterable[Job]) -> None:
    """Write the records of `jobs` as submits would, and return when the edge's index has them."""
    wanted: Counter[Status] = Counter()
    async with made.installation.bus() as bus:
        waiting = iter(jobs)

        async def worker() -> None:
            for job in waiting:
                wanted[job.status] += 1
                await bus.records.create(job.key, Recorded(job.created_at, Submitted(), job))

        async with anyio.create_task_group() as tasks:
            for _ in range(AT_ONCE):
                tasks.start_soon(worker)

    async def taken_over() -> bool:
        text = await made.client.call(METRICS)
        return all(_counted(text, status) >= count for status, count in wanted.items())

    await until(taken_over, within_s=600, every_s=0.5)


def _counted(metrics: str, status: Status) -> float:
    """How many jobs of that status the edge has."""
    rows = (line.rsplit(" ", 1) for line in metrics.splitlines() if f'status="{status}"' in line)
    return sum(float(value) for _, value in rows)


def without_docker(bench: str) -> Row | None:
    """The row that says why a bench leaves Docker out, or None where there is an engine to ask."""
    if "DOCKER_HOST" in os.environ and shutil.which("docker"):
        return None
    return Row(bench, "docker", 0, "runs", note="skipped: no DOCKER_HOST")
