"""The official `runpod` client, its base URL changed and nothing else, against an edge over the memory bus."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
from anyio import to_thread
from msgspec import Struct

from schemas import events as e
from schemas.feed import FeedPosition, ProgressMessage
from schemas.ids import JobKey
from schemas.job import Job, Output, OutputFile
from tests.edge.routes.conftest import face
from tests.support import runpod_client
from tests.support.served_edge import ServedEdge

__all__ = ["face"]

T = TypeVar("T")


class RunpodEdge(Struct, frozen=True):
    """An edge, and what its runner does with a job."""

    face: ServedEdge

    async def job(self, job_id: str) -> Job:
        return (await self.face.world.intake.read(JobKey("ann", job_id))).record.job

    async def say(self, job: Job, fraction: float, offset: int) -> None:
        note = ProgressMessage(
            FeedPosition(job.round, job.attempt, offset), self.face.world.time(), fraction, "render", 1, 4
        )
        await self.face.world.runner_bus.feed.publish(job.key, note)

    async def finish(self, job: Job) -> None:
        """What a runner does with one that runs."""
        sha256 = await self.face.world.put("ann", b"result", "result.mp4")
        output = Output((OutputFile("result.mp4", sha256, 6, "video/mp4"),), {"text": "hello"})
        await self.face.world.write_event(job.key, e.Succeeded(output))


class RunpodUser(RunpodEdge, frozen=True):
    """The same, as its client sees it. `endpoint` is the client's handle on `echo`, with a key of `ann`'s."""

    clients: Any
    endpoint: Any

    async def call(self, function: Callable[..., T], *about: Any) -> T:
        """One of the client's blocking calls."""
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
def cloud(face: ServedEdge) -> RunpodEdge:
    return RunpodEdge(face)


@pytest.fixture
async def rented(face: ServedEdge, clients: Any) -> RunpodUser:
    endpoint = await to_thread.run_sync(clients.Endpoint, f"{face.url}/v2", face.texts["ann"], "echo")
    return RunpodUser(face, clients, endpoint)
