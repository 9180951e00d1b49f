"""All calls of RunPod's own client, blocking and async."""

from typing import Any

import anyio
import pytest
import requests
from anyio import to_thread

from schemas import events as e
from schemas.job import JobFailure
from tests.edge.facades.runpod.conftest import RunpodUser
from tests.support.wait import wait_for


async def test_run_status_and_output(rented: RunpodUser):
    handle = await rented.run()
    assert await rented.call(handle.status) == "IN_QUEUE"
    job = await rented.edge.world.start(await rented.job_of(handle))
    assert await rented.call(handle.status) == "IN_PROGRESS"
    assert await rented.call(handle.output) is None
    await rented.say(job, 0.25, 10)
    assert await rented.call(handle.output) == {"fraction": 0.25, "stage": "render", "done": 1, "total": 4}
    await rented.finish(job)
    assert await rented.call(handle.status) == "COMPLETED"
    output = await rented.call(handle.output)
    assert output["text"] == "hello"
    (file,) = output["files"]
    assert (file["name"], file["bytes"]) == ("result.mp4", 6)
    assert (await rented.edge.ann.get(file["url"])).content == b"result"


async def test_run_wraps_a_bare_input(rented: RunpodUser):
    handle = await rented.call(rented.endpoint.run, {"text": "bare"})
    assert (await rented.job_of(handle)).input["text"] == "bare"


async def test_output_waits(rented: RunpodUser):
    handle = await rented.run()
    outputs: list[Any] = []

    async def wait() -> None:
        outputs.append(await to_thread.run_sync(handle.output, 20))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await rented.finish(await rented.edge.world.start(await rented.job_of(handle)))
    assert outputs[0]["text"] == "hello"


async def test_run_sync_holds_until_the_end(rented: RunpodUser):
    outputs: list[Any] = []

    async def wait() -> None:
        outputs.append(await rented.call(rented.endpoint.run_sync, {"input": {"text": "hello"}}, 20))

    async def sent() -> bool:
        return bool(await rented.edge.world.bus.job_store.keys())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await wait_for(sent)
        (key,) = await rented.edge.world.bus.job_store.keys()
        await rented.finish(await rented.edge.world.start(await rented.job(key.id)))
    assert outputs[0]["text"] == "hello"


async def test_stream_gives_progress_and_the_output_each_once_and_ends(rented: RunpodUser):
    handle = await rented.run()
    job = await rented.edge.world.start(await rented.job_of(handle))
    await rented.say(job, 0.25, 10)
    pieces: list[Any] = []
    seen = anyio.Event()

    async def read() -> None:
        stream = await rented.call(handle.stream)
        pieces.append(await to_thread.run_sync(next, stream))
        seen.set()
        pieces.extend(await to_thread.run_sync(list, stream))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await seen.wait()
        await rented.say(job, 0.75, 20)
        await rented.finish(job)
    assert [piece["fraction"] for piece in pieces[:-1]] == [0.25, 0.75]
    assert pieces[-1]["text"] == "hello"
    assert (await rented.call(handle.output))["text"] == "hello"


async def test_cancel(rented: RunpodUser):
    handle = await rented.run()
    job_id = await rented.call(handle.id)
    assert await rented.call(handle.cancel) == {"id": job_id, "status": "CANCELLED"}
    assert await rented.call(handle.status) == "CANCELLED"
    assert await rented.call(handle.cancel) == {"id": job_id, "status": "CANCELLED"}


async def test_cancel_of_a_running_job_waits_a_moment_for_its_end(rented: RunpodUser):
    handle = await rented.run()
    job = await rented.edge.world.start(await rented.job_of(handle))
    told: list[Any] = []

    async def cancel() -> None:
        told.append(await rented.call(handle.cancel))

    async def asked() -> bool:
        return (await rented.job(job.id)).status == "cancelling"

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancel)
        await wait_for(asked)
        await rented.edge.world.write_event(job.key, e.Cancelled())
    assert told == [{"id": job.id, "status": "CANCELLED"}]


async def test_a_job_that_has_ended_is_not_cancelled_any_more(rented: RunpodUser):
    handle = await rented.run()
    await rented.finish(await rented.edge.world.start(await rented.job_of(handle)))
    assert (await rented.call(handle.cancel))["status"] == "COMPLETED"


async def test_health_and_purge(rented: RunpodUser):
    world = rented.edge.world
    await world.announce_capabilities()
    await world.send_heartbeat()
    done, running, waiting, other = [await rented.run(name) for name in ("done", "running", "waiting", "other")]
    await rented.finish(await world.start(await rented.job_of(done)))
    await world.start(await rented.job_of(running))
    other_id = await rented.call(other.id)
    await rented.edge.ann.post(f"/v1/jobs/{other_id}/cancel")
    await rented.edge.ann.post(f"/v1/jobs/{other_id}/retry")
    await rented.edge.bob.post("/v1/jobs", json={"endpoint": "echo", "input": {}})
    assert await rented.call(rented.endpoint.health) == {
        "jobs": {"completed": 1, "failed": 0, "inProgress": 1, "inQueue": 2, "retried": 1},
        "workers": {"idle": 1, "running": 0, "initializing": 0, "throttled": 0, "unhealthy": 0},
    }
    assert await rented.call(rented.endpoint.purge_queue) == {"removed": 2, "status": "completed"}
    left = (await rented.call(rented.endpoint.health))["jobs"]
    assert (left["inQueue"], left["inProgress"]) == (0, 1)
    assert await rented.call(waiting.status) == "CANCELLED"
    assert await rented.call(running.status) == "IN_PROGRESS"
    assert (await rented.edge.bob.get("/v1/jobs")).json()["jobs"][0]["status"] == "queued"


async def test_a_failed_job(rented: RunpodUser):
    handle = await rented.run()
    job = await rented.edge.world.start(await rented.job_of(handle))
    await rented.edge.world.write_event(job.key, e.Failed(JobFailure("no_face", "no face", "client", retryable=False)))
    assert await rented.call(handle.status) == "FAILED"
    assert await rented.call(handle.output) is None


async def test_a_wrong_key_is_what_the_client_says_of_it(rented: RunpodUser):
    stranger = await rented.call(rented.clients.Endpoint, f"{rented.edge.url}/v2", "nonsense", "echo")
    with pytest.raises(RuntimeError, match="401 Unauthorized"):
        await rented.call(stranger.run, {"input": {"text": "x"}})


async def test_an_endpoint_that_is_not_there(rented: RunpodUser):
    nowhere = await rented.call(rented.clients.Endpoint, f"{rented.edge.url}/v2", rented.edge.texts["ann"], "nowhere")
    for call in (nowhere.health, nowhere.purge_queue, lambda: nowhere.run({"input": {"text": "x"}})):
        with pytest.raises(requests.HTTPError, match="404"):
            await rented.call(call)


async def test_the_async_client(rented: RunpodUser):
    endpoint = await rented.call(
        rented.clients.AsyncEndpoint, f"{rented.edge.url}/v2", rented.edge.texts["ann"], "echo"
    )
    handle = await rented.call(endpoint.run, {"text": "hello"})
    assert await rented.call(handle.status) == "IN_QUEUE"
    job = await rented.edge.world.start(await rented.job_of(handle))
    await rented.say(job, 0.5, 10)
    await rented.finish(job)
    pieces = await rented.call(lambda: list(handle.stream()))
    assert [piece.get("fraction") for piece in pieces] == [0.5, None]
    assert (await rented.call(handle.output, 10))["text"] == "hello"
    assert (await rented.call(endpoint.health))["jobs"]["completed"] == 1
    second = await rented.call(endpoint.run, {"text": "again"})
    assert (await rented.call(second.cancel))["status"] == "CANCELLED"
    assert await rented.call(endpoint.purge_queue) == {"removed": 0, "status": "completed"}
