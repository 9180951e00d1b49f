"""What the clients can do beside uploading first: files that follow the job, webhooks, batches."""

from pathlib import Path

import anyio.to_thread
import pytest

import lamplighter
import schemas
from lamplighter import AsyncClient, Client
from tests.support.served_edge import ServedEdge
from tests.support.wait import wait_for
from tests.support.webhook_receiver import run_receiver


@pytest.mark.parametrize("blocking", [True, False])
async def test_a_job_may_go_ahead_of_its_files(face: ServedEdge, tmp_path: Path, blocking: bool):
    file = tmp_path / "film.mp4"
    file.write_bytes(b"a film")
    key, cache = face.texts["ann"], tmp_path / "cache.json"
    async with run_receiver() as receiver, AsyncClient(face.url, key, cache=cache) as client:
        if blocking:
            with Client(face.url, key, cache=cache) as other:
                job = await anyio.to_thread.run_sync(
                    lambda: other.submit("echo", file=file, await_input=True, webhook=receiver.url)
                )
        else:
            job = await client.submit("echo", file=file, await_input=True, webhook=receiver.url)
        assert (job.status, job.missing) == ("scheduled", (job.input["file"],))

        async def queued() -> bool:
            return (await client.job(job.id)).status == "queued"

        await wait_for(queued)
        assert {got.job["id"] for got in await receiver.wait_for_deliveries(1)} == {job.id}


@pytest.mark.parametrize("blocking", [True, False])
async def test_a_batch_tells_which_were_taken(face: ServedEdge, tmp_path: Path, blocking: bool):
    bodies = [{"endpoint": "echo", "input": {"text": "a"}}, {"endpoint": "nowhere", "input": {}}]
    key, cache = face.texts["ann"], tmp_path / "cache.json"
    async with AsyncClient(face.url, key, cache=cache) as client:
        if blocking:
            with Client(face.url, key, cache=cache) as other:
                made = await anyio.to_thread.run_sync(lambda: other.batch(bodies, "k"))
        else:
            made = await client.batch(bodies, "k")
    assert [job.input["text"] for job in made.accepted] == ["a"]
    assert [(row.index, row.problem.code) for row in made.rejected] == [(1, "endpoint_unknown")]


def test_what_is_public_is_exported_and_typed():
    assert all(hasattr(lamplighter, name) for name in lamplighter.__all__)
    for package in (lamplighter, schemas):
        assert (Path(package.__path__[0]) / "py.typed").exists()
