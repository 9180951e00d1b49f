"""The official `runpod` client with another base URL, against an edge over the fake bus."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
from anyio import to_thread
from msgspec import Struct

from schemas import events as e
from schemas.events import FeedPosition, ProgressMessage
from schemas.job import Job, JobKey, Output, OutputFile
from tests.edge.routes.conftest import edge
from tests.support import runpod_client
from tests.support.served_edge import ServedEdge

__all__ = ["edge"]

T = TypeVar("T")


class RunpodEdge(Struct, frozen=True):
    """A served edge, with the actions of a runner on its jobs."""

    edge: ServedEdge

    async def job(self, job_id: str) -> Job:
        return (await self.edge.world.jobs.read(JobKey("ann", job_id))).record.job

    async def say(self, job: Job, fraction: float, offset: int) -> None:
        note = ProgressMessage(
            FeedPosition(job.round, job.attempt, offset), self.edge.world.time(), fraction, "render", 1, 4
        )
        await self.edge.world.runner_bus.feed.publish(job.key, note)

    async def finish(self, job: Job) -> None:
        """Finish a running job as a runner does."""
        sha256 = await self.edge.world.put("ann", b"result", "result.mp4")
        output = Output((OutputFile("result.mp4", sha256, 6, "video/mp4"),), {"text": "hello"})
        await self.edge.world.write_event(job.key, e.Succeeded(output))


class RunpodUser(RunpodEdge, frozen=True):
    """A RunPod client of the edge. `endpoint`: its handle for `echo`, with a key of `ann`."""

    clients: Any
    endpoint: Any

    async def call(self, function: Callable[..., T], *about: Any) -> T:
        """Make a blocking call of the client in a thread."""
        return await to_thread.run_sync(function, *about)

    async def run(self, text: str = "hello", **more: Any) -> Any:
        return await self.call(self.endpoint.run, {"input": {"text": text}, **more})

    async def job_of(self, handle: Any) -> Job:
        return await self.job(await self.call(handle.id))


@pytest.fixture(scope="session")
def clients() -> Iterator[Any]:
    with runpod_client.run_clients() as clients:
        yield clients


@pytest.fixture
def cloud(edge: ServedEdge) -> RunpodEdge:
    return RunpodEdge(edge)


@pytest.fixture
async def rented(edge: ServedEdge, clients: Any) -> RunpodUser:
    endpoint = await to_thread.run_sync(clients.Endpoint, f"{edge.url}/v2", edge.texts["ann"], "echo")
    return RunpodUser(edge, clients, endpoint)
