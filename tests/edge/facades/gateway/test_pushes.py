"""Pushes of the gateway: states, progress, results, hosts, and waiting jobs."""

import socket as sockets
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

from edge.facades.gateway.gateway import GatewayLimits
from edge.owners.api_keys import ApiKeyStore
from schemas import events as e
from schemas.events import FeedPosition, ProgressMessage
from schemas.job import Job, JobFailure, JobKey, Output
from tests.edge.facades.gateway.conftest import GatewayEdge, make_keys, run_gateway_edge
from tests.support.edge_services import FixedEntropy, fake_bus_services
from tests.support.gateway_client import GatewayClient

OFTEN = pytest.mark.parametrize("limits", [GatewayLimits(waiting_interval_s=0.1)])


async def submit(made: GatewayClient, code: str, **fields: Any) -> None:
    """Submit a job with the id `code`."""
    said = await made.ask("gpu.job.submit", {"text": "hello", "code": code}, task_type="heygem_submit", **fields)
    assert said["payload"]["job_id"] == code


async def job(gateway: GatewayEdge, code: str, owner: str = "ann") -> Job:
    return (await gateway.world.jobs.read(JobKey(owner, code))).record.job


async def progress(gateway: GatewayEdge, code: str, offset: int = 10, owner: str = "ann") -> None:
    note = ProgressMessage(FeedPosition(1, 1, offset), gateway.world.time(), 0.5, "render", 5, 10)
    await gateway.world.runner_bus.feed.publish(JobKey(owner, code), note)


async def run(gateway: GatewayEdge, code: str) -> None:
    """Start the job, report progress, and finish it."""
    await gateway.world.start(await job(gateway, code))
    await progress(gateway, code)
    await gateway.world.write_event(JobKey("ann", code), e.Succeeded(Output(data={"text": "hi"})))


async def test_a_job_is_reported_from_its_submit_to_its_result(gateway: GatewayEdge):
    async with gateway.connect() as made:
        await submit(made, "c-1", request_id="r1", trace_id="t1")
        queued = await made.wait_for_type("gpu.job.status", status="queued")
        await run(gateway, "c-1")
        result = await made.wait_for_type("gpu.job.result")
        half = await made.wait_for_type("gpu.job.progress")
        running = await made.wait_for_type("gpu.job.status", status="running")
    assert made.messages[0]["type"] == "gpu.power.offline"  # the answer comes before any push
    for push in (queued, running, half, result):
        assert (push["request_id"], push["trace_id"], push["task_type"]) == ("r1", "t1", "heygem_submit")
        assert push["payload"]["id"]
    assert queued["payload"]["waited_seconds"] == 0
    assert running["payload"]["message"] == "The job is running"
    assert (half["payload"]["fraction"], half["payload"]["stage"], half["payload"]["done"]) == (0.5, "render", 5)
    assert (result["error"], result["error_msg"], result["result"]["output"]["data"]) == (False, "", {"text": "hi"})


@pytest.mark.parametrize(("language", "said"), [("zh", "视频中未检测到人脸"), ("en", "No face was found in the video")])
async def test_a_failure_is_an_error_in_the_callers_language(gateway: GatewayEdge, language: str, said: str):
    async with gateway.connect(Accept_Language=language) as made:
        await submit(made, "c-1")
        await gateway.world.start(await job(gateway, "c-1"))
        failure = JobFailure("no_face", "nobody there", "client", retryable=False)
        await gateway.world.write_event(JobKey("ann", "c-1"), e.Failed(failure))
        result = await made.wait_for_type("gpu.job.result")
    assert (result["error"], result["error_msg"]) == (True, said)
    error = result["result"]["error"]
    assert (error["code"], error["message"], error["blame"]) == ("no_face", said, "client")


async def test_a_cancelled_job_ends_as_an_error_too(gateway: GatewayEdge):
    async with gateway.connect() as made:
        await submit(made, "c-1")
        await made.ask("gpu.job.cancel", {"job_id": "c-1"})
        result = await made.wait_for_type("gpu.job.result")
    assert (result["error"], result["result"]["error"]["code"]) == (True, "cancelled")


async def test_every_socket_of_the_owner_is_notified_and_nobody_elses(gateway: GatewayEdge):
    async with gateway.connect() as one, gateway.connect() as other, gateway.connect("bob") as bob:
        await submit(one, "c-1", request_id="r1")
        await run(gateway, "c-1")
        for made in (one, other):
            assert (await made.wait_for_type("gpu.job.result"))["request_id"] == "r1"
        await submit(bob, "mine")
        await bob.wait_for_type("gpu.job.status", job_id="mine")
    assert {said["payload"]["job_id"] for said in bob.messages} == {"mine"}


async def test_hosts_that_come_and_go_are_broadcast(gateway: GatewayEdge):
    await gateway.world.hosts.refresh()
    async with gateway.connect("blind", Accept_Language="zh") as made, gateway.connect("bob") as bob:
        for one in (made, bob):
            await one.ask("ping")
        await gateway.world.send_heartbeat()
        online = await made.wait_for_type("gpu.power.online", host="gpu-1")
        await bob.wait_for_type("gpu.power.online", host="gpu-1")
        await gateway.world.bus.heartbeats.delete("gpu-1")
        await gateway.world.hosts.refresh()
        offline = await made.wait_for_type("gpu.power.offline", host="gpu-1")
    assert online["payload"]["message"] == "GPU服务器已上线，可以开始处理任务"
    assert online["request_id"] == offline["request_id"] == ""


@OFTEN
async def test_what_waits_is_reported_again_and_again(gateway: GatewayEdge):
    async with gateway.connect() as made:
        await submit(made, "c-1", request_id="r1")
        gateway.world.time.advance(seconds=31)
        line = await made.wait_for(lambda said: (said["payload"].get("waited_seconds") or 0) >= 31)
        assert (line["type"], line["request_id"], line["payload"]["job_id"]) == ("gpu.job.status", "r1", "c-1")
        assert line["payload"]["id"]
        await gateway.world.start(await job(gateway, "c-1"))
        await made.wait_for_type("gpu.job.status", status="running")
        await submit(made, "c-2")
        for seconds in (1, 2, 3):  # what still waits is told of, what runs is not
            gateway.world.time.advance(seconds=1)
            made.messages.clear()
            await made.wait_for(lambda said: (said["payload"].get("waited_seconds") or 0) >= seconds)  # noqa: B023 - awaited here
            assert {said["payload"].get("job_id") for said in made.messages} == {"c-2"}


async def test_a_reconnect_resumes_without_a_gap_or_a_double(gateway: GatewayEdge):
    async with gateway.connect() as made:
        await submit(made, "c-1", request_id="r1", trace_id="t1")
        await gateway.world.start(await job(gateway, "c-1"))
        last = await made.wait_for_type("gpu.job.status", status="running")
    await progress(gateway, "c-1")
    await gateway.world.write_event(JobKey("ann", "c-1"), e.Succeeded(Output()))
    async with gateway.connect() as made:
        await made.send("resume", {"after": last["payload"]["id"]})
        await made.wait_for_type("gpu.job.result")
        await submit(made, "c-2")
        await run(gateway, "c-2")
        await made.wait_for_type("gpu.job.result", job_id="c-2")
    told = [(said["type"], said["payload"]["job_id"], said["request_id"]) for said in made.messages]
    pushes = [said for said in told if said[0].startswith("gpu.job")]
    assert pushes[:2] == [("gpu.job.progress", "c-1", "r1"), ("gpu.job.result", "c-1", "r1")]
    assert pushes[2:] == [
        *[("gpu.job.status", "c-2", "")] * 2,
        ("gpu.job.progress", "c-2", ""),
        ("gpu.job.result", "c-2", ""),
    ]


@pytest.mark.parametrize("after", ["", "nonsense", "zzz-1-1"])
async def test_an_id_of_another_life_resumes_from_the_start(gateway: GatewayEdge, after: str):
    async with gateway.connect() as made:
        await submit(made, "c-1")
        await run(gateway, "c-1")
        await made.wait_for_type("gpu.job.result")
    async with gateway.connect() as made:
        await made.send("resume", {"after": after})
        await made.wait_for_type("gpu.job.result")
        await made.ask("ping")
    assert [said["type"] for said in made.messages[:4]] == [
        *["gpu.job.status"] * 2,
        "gpu.job.progress",
        "gpu.job.result",
    ]


async def test_jobs_submitted_on_one_edge_are_reported_on_the_other(gateway: GatewayEdge, tmp_path: Path):
    async with AsyncExitStack() as stack:
        (tmp_path / "second").mkdir()
        world = await stack.enter_async_context(
            fake_bus_services(tmp_path / "second", gateway.world.broker, gateway.world.time)
        )
        keys = ApiKeyStore(world.bus.api_keys, world.time, FixedEntropy(), world.time.seconds)
        second = await stack.enter_async_context(run_gateway_edge(world, keys, gateway.texts))
        there = await stack.enter_async_context(second.connect())
        async with gateway.connect() as here:
            await there.ask("ping")
            await submit(here, "c-1", request_id="r1", trace_id="t1")
        await run(gateway, "c-1")
        for kind in ("gpu.job.progress", "gpu.job.result"):
            push = await there.wait_for_type(kind, job_id="c-1")
            assert (push["request_id"], push["trace_id"]) == ("r1", "t1")
        again = await there.ask("gpu.job.submit", {"text": "b"}, task_type="echo", request_id="r2")
        async with gateway.connect() as here:
            same = await here.ask("gpu.job.submit", {"text": "b"}, task_type="echo", request_id="r2")
        assert same["payload"]["job_id"] == again["payload"]["job_id"]


async def test_an_edge_that_restarts_is_resumed_at(tmp_path: Path):
    async with AsyncExitStack() as outer:
        world = await outer.enter_async_context(fake_bus_services(tmp_path))
        keys = ApiKeyStore(world.bus.api_keys, world.time, FixedEntropy(), world.time.seconds)
        texts = await make_keys(keys)
        async with run_gateway_edge(world, keys, texts) as gateway, gateway.connect() as made:
            await submit(made, "c-1", request_id="r1")
            last = await made.wait_for_type("gpu.job.status", status="queued")
        await run(gateway, "c-1")
        async with run_gateway_edge(world, keys, texts) as gateway, gateway.connect() as made:
            await made.send("resume", {"after": last["payload"]["id"]})
            result = await made.wait_for_type("gpu.job.result")
        assert result["request_id"] == "r1"


async def test_a_broker_that_restarts_interrupts_nothing(gateway: GatewayEdge):
    async with gateway.connect() as made:
        await submit(made, "c-1", request_id="r1")
        await made.wait_for_type("gpu.job.status", status="queued")
        gateway.world.broker.restart()
        await run(gateway, "c-1")
        assert (await made.wait_for_type("gpu.job.result"))["request_id"] == "r1"


@pytest.mark.parametrize("limits", [GatewayLimits(queue_bytes_limit=400_000)])
async def test_a_slow_reader_is_closed_4408_and_resumes_to_the_end(gateway: GatewayEdge):
    """The client reads nothing until the server closes the socket. Its resume replays at the pace of the client."""
    narrow = sockets.socket()
    narrow.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    host, port = gateway.url.removeprefix("http://").split(":")
    await anyio.to_thread.run_sync(narrow.connect, (host, int(port)))
    narrow.setblocking(False)
    async with gateway.connect() as quick, gateway.connect(sock=narrow, max_queue=1) as slow:
        await submit(slow, "c-1", request_id="r1")
        first = await slow.wait_for_type("gpu.job.status", status="queued")
        for number in range(150):
            made = await gateway.world.submit(text="x" * 60_000, job_id=f"large-{number}")
            await quick.wait_for_type("gpu.job.status", job_id=made.id)
            quick.messages.clear()
        await run(gateway, "c-1")
        await quick.wait_for_type("gpu.job.result")
        assert await slow.wait_until_closed() == 4408
        assert slow.close_reason.endswith("and resume")
    assert not any(said["type"] == "gpu.job.result" for said in slow.messages)
    last = [said["payload"]["id"] for said in slow.messages if said["payload"].get("id")][-1]
    assert last != first["payload"]["id"]
    async with gateway.connect() as again:
        await again.send("resume", {"after": last})
        assert (await again.wait_for_type("gpu.job.result"))["request_id"] == "r1"
    told = [said["payload"]["job_id"] for said in slow.messages + again.messages if said["type"] == "gpu.job.status"]
    assert [name for name in told if name.startswith("large")] == [f"large-{number}" for number in range(150)]
