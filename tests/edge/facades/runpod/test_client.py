"""Every call of RunPod's own client, blocking and async."""

from typing import Any

import aiohttp
import anyio
import pytest
import requests
import runpod
from anyio import to_thread

from schemas import events as e
from schemas.job import Failure
from tests.broker import until
from tests.edge.facades.runpod.conftest import Cloud


async def test_run_status_and_output(cloud: Cloud):
    handle = await cloud.run()
    assert await cloud.call(handle.status) == "IN_QUEUE"
    job = await cloud.face.world.start(await cloud.job(handle.job_id))
    assert await cloud.call(handle.status) == "IN_PROGRESS"
    assert await cloud.call(handle.output) is None
    await cloud.say(job, 0.25, 10)
    assert await cloud.call(handle.output) == {"fraction": 0.25, "stage": "render", "done": 1, "total": 4}
    await cloud.finish(job)
    assert await cloud.call(handle.status) == "COMPLETED"
    output = await cloud.call(handle.output)
    assert output["text"] == "hello"
    (file,) = output["files"]
    assert (file["name"], file["bytes"]) == ("result.mp4", 6)
    assert (await cloud.face.ann.get(file["url"])).content == b"result"


async def test_run_wraps_a_bare_input(cloud: Cloud):
    handle = await cloud.call(cloud.endpoint.run, {"text": "bare"})
    assert (await cloud.job(handle.job_id)).input["text"] == "bare"


async def test_output_waits(cloud: Cloud):
    handle = await cloud.run()
    outputs: list[Any] = []

    async def wait() -> None:
        outputs.append(await to_thread.run_sync(handle.output, 20))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await cloud.finish(await cloud.face.world.start(await cloud.job(handle.job_id)))
    assert outputs[0]["text"] == "hello"


async def test_run_sync_holds_until_the_end(cloud: Cloud):
    outputs: list[Any] = []

    async def wait() -> None:
        outputs.append(await cloud.call(cloud.endpoint.run_sync, {"input": {"text": "hello"}}, 20))

    async def sent() -> bool:
        return bool(await cloud.face.world.bus.records.keys())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await until(sent)
        (key,) = await cloud.face.world.bus.records.keys()
        await cloud.finish(await cloud.face.world.start(await cloud.job(key.id)))
    assert outputs[0]["text"] == "hello"


async def test_stream_gives_progress_and_the_output_each_once_and_ends(cloud: Cloud):
    handle = await cloud.run()
    job = await cloud.face.world.start(await cloud.job(handle.job_id))
    await cloud.say(job, 0.25, 10)
    pieces: list[Any] = []
    seen = anyio.Event()

    async def read() -> None:
        stream = handle.stream()
        pieces.append(await to_thread.run_sync(next, stream))
        seen.set()
        pieces.extend(await to_thread.run_sync(list, stream))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await seen.wait()
        await cloud.say(job, 0.75, 20)
        await cloud.finish(job)
    assert [piece["fraction"] for piece in pieces[:-1]] == [0.25, 0.75]
    assert pieces[-1]["text"] == "hello"
    assert (await cloud.call(handle.output))["text"] == "hello"


async def test_cancel(cloud: Cloud):
    handle = await cloud.run()
    assert await cloud.call(handle.cancel) == {"id": handle.job_id, "status": "CANCELLED"}
    assert await cloud.call(handle.status) == "CANCELLED"
    assert await cloud.call(handle.cancel) == {"id": handle.job_id, "status": "CANCELLED"}


async def test_cancel_of_a_running_job_waits_a_moment_for_its_end(cloud: Cloud):
    handle = await cloud.run()
    job = await cloud.face.world.start(await cloud.job(handle.job_id))
    told: list[Any] = []

    async def cancel() -> None:
        told.append(await cloud.call(handle.cancel))

    async def asked() -> bool:
        return (await cloud.job(job.id)).status == "cancelling"

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancel)
        await until(asked)
        await cloud.face.world.apply(job.key, e.Cancelled())
    assert told == [{"id": job.id, "status": "CANCELLED"}]


async def test_a_job_that_has_ended_is_not_cancelled_any_more(cloud: Cloud):
    handle = await cloud.run()
    await cloud.finish(await cloud.face.world.start(await cloud.job(handle.job_id)))
    assert (await cloud.call(handle.cancel))["status"] == "COMPLETED"


async def test_health_and_purge(cloud: Cloud):
    world = cloud.face.world
    await world.offer()
    await world.appear()
    done, running, waiting, other = [await cloud.run(name) for name in ("done", "running", "waiting", "other")]
    await cloud.finish(await world.start(await cloud.job(done.job_id)))
    await world.start(await cloud.job(running.job_id))
    await cloud.face.ann.post(f"/v1/jobs/{other.job_id}/cancel")
    await cloud.face.ann.post(f"/v1/jobs/{other.job_id}/retry")
    await cloud.face.bob.post("/v1/jobs", json={"endpoint": "echo", "input": {}})
    assert await cloud.call(cloud.endpoint.health) == {
        "jobs": {"completed": 1, "failed": 0, "inProgress": 1, "inQueue": 2, "retried": 1},
        "workers": {"idle": 1, "running": 0, "initializing": 0, "throttled": 0, "unhealthy": 0},
    }
    assert await cloud.call(cloud.endpoint.purge_queue) == {"removed": 2, "status": "completed"}
    left = (await cloud.call(cloud.endpoint.health))["jobs"]
    assert (left["inQueue"], left["inProgress"]) == (0, 1)
    assert await cloud.call(waiting.status) == "CANCELLED"
    assert await cloud.call(running.status) == "IN_PROGRESS"
    assert (await cloud.face.bob.get("/v1/jobs")).json()["jobs"][0]["status"] == "queued"


async def test_a_failed_job(cloud: Cloud):
    handle = await cloud.run()
    job = await cloud.face.world.start(await cloud.job(handle.job_id))
    await cloud.face.world.apply(job.key, e.Failed(Failure("no_face", "no face", "client", retryable=False)))
    assert await cloud.call(handle.status) == "FAILED"
    assert await cloud.call(handle.output) is None


async def test_a_wrong_key_is_what_the_client_says_of_it(cloud: Cloud):
    stranger = runpod.Endpoint("echo", api_key="nonsense")
    with pytest.raises(RuntimeError, match="401 Unauthorized"):
        await cloud.call(stranger.run, {"input": {"text": "x"}})
    stranger.rp_client.rp_session.close()


async def test_an_endpoint_that_is_not_there(cloud: Cloud):
    nowhere = runpod.Endpoint("nowhere")
    for call in (nowhere.health, nowhere.purge_queue, lambda: nowhere.run({"input": {"text": "x"}})):
        with pytest.raises(requests.HTTPError, match="404"):
            await cloud.call(call)
    nowhere.rp_client.rp_session.close()


async def test_the_async_client(cloud: Cloud):
    async with aiohttp.ClientSession() as session:
        endpoint = runpod.AsyncioEndpoint("echo", session)
        handle = await endpoint.run({"text": "hello"})
        assert await handle.status() == "IN_QUEUE"
        job = await cloud.face.world.start(await cloud.job(handle.job_id))
        await cloud.say(job, 0.5, 10)
        await cloud.finish(job)
        pieces = [piece async for piece in handle.stream()]
        assert [piece.get("fraction") for piece in pieces] == [0.5, None]
        assert (await handle.output(timeout=10))["text"] == "hello"
        assert (await endpoint.health())["jobs"]["completed"] == 1
        second = await endpoint.run({"text": "again"})
        assert (await second.cancel())["status"] == "CANCELLED"
        assert await endpoint.purge_queue() == {"removed": 0, "status": "completed"}
