"""The official `runpod` client, with nothing of it changed but the base URL, against an edge over the memory bus."""

from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import pytest
import runpod
from anyio import to_thread
from msgspec import Struct

from schemas import events as e
from schemas.feed import Place, ProgressNote
from schemas.job import File, Job, JobKey, Output
from tests.edge.routes.conftest import Face, face

__all__ = ["face"]

T = TypeVar("T")


class Cloud(Struct, frozen=True):
    """`endpoint` is the client's handle on `echo`, with a key of `ann`'s."""

    face: Face
    endpoint: Any

    async def call(self, function: Callable[..., T], *about: Any) -> T:
        """One of the client's blocking calls."""
        return await to_thread.run_sync(function, *about)

    async def run(self, text: str = "hello", **more: Any) -> Any:
        return await self.call(self.endpoint.run, {"input": {"text": text}, **more})

    async def job(self, job_id: str) -> Job:
        return (await self.face.world.intake.read(JobKey("ann", job_id))).recorded.job

    async def say(self, job: Job, fraction: float, offset: int) -> None:
        note = ProgressNote(Place(job.round, job.attempt, offset), self.face.world.time(), fraction, "render", 1, 4)
        await self.face.world.runner_bus.feed.publish(job.key, note)

    async def finish(self, job: Job) -> None:
        """What a runner does with one that runs."""
        sha256 = await self.face.world.put("ann", b"result", "result.mp4")
        output = Output((File("result.mp4", sha256, 6, "video/mp4"),), {"text": "hello"})
        await self.face.world.apply(job.key, e.Succeeded(output))


@pytest.fixture
async def cloud(face: Face, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cloud]:
    monkeypatch.setattr(runpod, "endpoint_url_base", f"{face.url}/v2")
    monkeypatch.setattr(runpod, "api_key", face.texts["ann"])
    endpoint = runpod.Endpoint("echo")
    yield Cloud(face, endpoint)
    endpoint.rp_client.rp_session.close()
