"""Two edges behind Caddy, with three brokers and a bucket: work goes on at one edge when the other is killed.

The tests depend on their order only in that each leaves both edges running.
"""

import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import httpx2
import pytest

from bus.interface import Bus
from edge.store.unfinished_uploads import PART_BYTES
from lamplighter import AsyncClient
from lamplighter.follow import Event
from schemas.job import FINAL_STATUSES
from tests.cluster.two_edges import EDGES, TwoEdgesInstallation, run_two_edges
from tests.support.wait import wait_for
from tests.support.webhook_receiver import run_receiver

pytestmark = [pytest.mark.timeout(300), pytest.mark.long(40)]
RECOVERY_TIMEOUT_S = 60.0
JOBS = 24
CLIENTS = 4
TUS = {"Tus-Resumable": "1.0.0"}


class Running(NamedTuple):
    """The installation, the rights of an edge, and an ordinary client that goes through Caddy."""

    installation: TwoEdgesInstallation
    bus: Bus
    ann: AsyncClient


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory, anyio_backend: object) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("edges")
    async with run_two_edges(folder) as (installation, bus):
        async with AsyncClient(installation.url, installation.keys["ann"], cache=folder / "ann.json") as ann:
            yield Running(installation, bus, ann)
        print(installation.tail())  # noqa: T201 - shown by pytest when a test failed


async def kill_and_restart(running: Running, name: str, meanwhile: Callable[[], Awaitable[object]]) -> None:
    """Kill an edge with SIGKILL, wait for `meanwhile`, and start the edge again."""
    await running.installation.edges[name].kill()
    await meanwhile()
    await running.installation.start_edge_of(name)


async def retried(send: Callable[[], Awaitable[httpx2.Response]]) -> httpx2.Response:
    """Repeat a request until an edge has answered it, as a client does after 502 or a lost connection."""

    async def answer() -> httpx2.Response | None:
        try:
            reply = await send()
        except httpx2.HTTPError:
            return None
        return None if reply.status_code >= 500 else reply

    return await wait_for(answer, timeout_s=RECOVERY_TIMEOUT_S, interval_s=0.1)


async def submit(client: AsyncClient, key: str, **inputs: Any) -> dict[str, Any]:
    body, headers = {"endpoint": "echo", "input": inputs}, {"Idempotency-Key": key}
    reply = await retried(lambda: client._http.post("/v1/jobs", json=body, headers=headers))
    assert reply.status_code in {200, 202}, reply.text
    view: dict[str, Any] = reply.json()
    return view


async def test_an_edge_dies_between_submits_and_each_job_exists_once(running: Running):
    done: list[tuple[str, str]] = []
    half = anyio.Event()

    async def client(number: int) -> None:
        for turn in range(number, JOBS, CLIENTS):
            done.append((f"key-{turn}", (await submit(running.ann, f"key-{turn}", text=str(turn)))["id"]))
            if len(done) >= JOBS // 3:
                half.set()

    async def all_done() -> bool:
        return len(done) == JOBS

    async with anyio.create_task_group() as tasks:
        for number in range(CLIENTS):
            tasks.start_soon(client, number)
        await half.wait()
        await kill_and_restart(running, "edge-1", lambda: wait_for(all_done, timeout_s=RECOVERY_TIMEOUT_S))
    assert len({job_id for _, job_id in done}) == JOBS
    for key, job_id in done[::5]:
        for name in EDGES:
            async with running.installation.client_of(name) as edge:
                assert (await submit(edge, key, text=key.removeprefix("key-")))["id"] == job_id
    for _, job_id in done:
        ended = await running.ann.wait(job_id, timeout_s=RECOVERY_TIMEOUT_S)
        assert (ended.status, ended.attempt) == ("succeeded", 1)


async def test_an_upload_continues_at_the_other_edge(running: Running):
    installation, body = running.installation, os.urandom(3 * PART_BYTES + 12345)
    digest = hashlib.sha256(body).hexdigest()
    sent = len(body) - PART_BYTES // 2
    created = await running.ann._http.post("/v1/uploads", headers=TUS | {"Upload-Length": str(len(body))})
    path = created.headers["location"].removeprefix(installation.url)
    killed = anyio.Event()

    async def until_killed() -> AsyncIterator[bytes]:
        yield body[:sent]
        await killed.wait()
        yield body[sent:]

    async def send(content: AsyncIterator[bytes] | bytes, offset: int) -> httpx2.Response:
        headers = TUS | {"Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
        return await running.ann._http.patch(path, content=content, headers=headers)

    async def send_and_lose() -> None:
        try:
            reply = await send(until_killed(), 0)
        except httpx2.HTTPError:
            return
        assert reply.status_code >= 500, reply.text

    async def offset() -> int:
        reply = await retried(lambda: running.ann._http.head(path, headers=TUS))
        return int(reply.headers["upload-offset"])

    async def receiving() -> str | None:
        return next((name for name in EDGES if list(installation.upload_folder(name).glob("*.part"))), None)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send_and_lose)
        receiver = await wait_for(receiving, timeout_s=RECOVERY_TIMEOUT_S)
        # The receiver would end the request that sends, because it is silent: the client seems to have come back.
        (other,) = set(EDGES) - {receiver}
        async with installation.client_of(other) as edge:

            async def two_parts() -> int | None:
                at = int((await edge._http.head(path, headers=TUS)).headers["upload-offset"])
                return at if at >= 2 * PART_BYTES else None

            durable = await wait_for(two_parts, timeout_s=RECOVERY_TIMEOUT_S)
        await installation.edges[receiver].kill()
        killed.set()
    at = await offset()
    assert durable <= at <= sent
    reply = await retried(lambda: send(body[at:], at))
    assert (reply.status_code, reply.headers["lamplighter-asset"]) == (204, f"sha256:{digest}")
    await installation.start_edge_of(receiver)
    for name in EDGES:
        async with installation.client_of(name) as edge:
            seen = await edge._http.head(path, headers=TUS)
            assert seen.headers["lamplighter-asset"] == f"sha256:{digest}"
            got = await edge._http.get(f"/v1/assets/{digest}", follow_redirects=True)
            assert got.content == body


async def test_two_writers_of_one_upload_are_refused_as_at_one_edge(running: Running):
    body = os.urandom(5000)
    async with running.installation.client_of("edge-1") as first, running.installation.client_of("edge-2") as second:
        created = await first._http.post("/v1/uploads", headers=TUS | {"Upload-Length": str(len(body))})
        path = created.headers["location"].removeprefix(running.installation.edge_url("edge-1"))

        async def send(edge: AsyncClient, content: bytes, offset: int) -> int:
            headers = TUS | {"Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
            return (await edge._http.patch(path, content=content, headers=headers)).status_code

        answers: list[int] = []

        async def send_first(edge: AsyncClient, size: int) -> None:
            answers.append(await send(edge, body[:size], 0))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_first, first, 1000)
            tasks.start_soon(send_first, second, 2000)
        assert sorted(answers) == [204, 409]
        offsets = {(await edge._http.head(path, headers=TUS)).headers["upload-offset"] for edge in (first, second)}
        (at,) = offsets
        assert at in {"1000", "2000"}
        assert await send(second, body[int(at) :], int(at)) == 204
        ended = await first._http.head(path, headers=TUS)
        assert ended.headers["lamplighter-asset"] == f"sha256:{hashlib.sha256(body).hexdigest()}"
        assert (await second._http.delete(path, headers=TUS)).status_code == 204
        assert (await first._http.head(path, headers=TUS)).status_code == 404


async def test_streams_continue_at_the_other_edge_without_a_gap(running: Running):
    job = await running.ann.submit("echo", text="streamed", steps=60, seconds=5)
    seen: list[list[Event]] = [[], []]
    begun = [anyio.Event(), anyio.Event()]

    async def follow(number: int) -> None:
        async for event in running.ann.follow(job.id):
            seen[number].append(event)
            if event.kind == "progress":
                begun[number].set()

    async def both_ended() -> bool:
        return all(events and events[-1].data.get("status") in FINAL_STATUSES for events in seen)

    async with anyio.create_task_group() as tasks:
        for number in range(2):  # Caddy sends them to both edges in turn
            tasks.start_soon(follow, number)
        for event in begun:
            await event.wait()
        await kill_and_restart(running, "edge-2", lambda: wait_for(both_ended, timeout_s=RECOVERY_TIMEOUT_S))
    ids = [[event.id for event in events] for events in seen]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == len(ids[0])
    steps = [event.data for event in seen[0] if event.kind == "log"]
    assert sum(str(data["text"]).count("step ") for data in steps) == 60


async def test_what_one_edge_signed_the_other_accepts(running: Running, tmp_path: Path):
    (tmp_path / "file.bin").write_bytes(b"signed")
    job = await running.ann.submit("echo", file=tmp_path / "file.bin", wait=True)
    installation = running.installation
    async with installation.client_of("edge-1") as first, httpx2.AsyncClient(timeout=60) as nobody:
        output = (await first.job(job.id)).output
        assert output is not None
        signed = installation.edge_url("edge-2") + output.files[0].url
        assert (await nobody.get(signed, follow_redirects=True)).content == b"signed"
        assert (await nobody.get(signed.partition("?")[0])).status_code == 401
        token = (await first._http.post("/v1/tokens", json={"scopes": ["jobs:read"]})).json()["token"]
        read = await nobody.get(installation.edge_url("edge-2") + f"/v1/jobs/{job.id}?token={token}")
        assert read.json()["id"] == job.id
        signed_in = await nobody.post(
            installation.edge_url("edge-1") + "/v1/session", json={"key": installation.keys["ann"]}
        )
        assert signed_in.status_code == 201
        read = await nobody.get(installation.edge_url("edge-2") + f"/v1/jobs/{job.id}")  # with the cookie
        assert read.json()["id"] == job.id


async def test_a_sign_in_link_works_once_at_any_edge(running: Running):
    installation = running.installation
    async with installation.client_of("edge-1") as first:
        ticket = (await first._http.post("/v1/session/tickets")).json()["ticket"]
    async with httpx2.AsyncClient(timeout=60) as browser:
        answers = [
            (await browser.post(installation.edge_url(name) + "/v1/session", json={"ticket": ticket})).status_code
            for name in ("edge-2", "edge-1", "edge-2")
        ]
    assert answers == [201, 401, 401]


async def test_a_webhook_is_sent_once_with_two_edges(running: Running):
    async with run_receiver() as receiver:
        url = receiver.url.replace("files.test", "127.0.0.1")
        jobs = [await running.ann.submit("echo", text=str(number), webhook=url) for number in range(6)]
        for job in jobs:
            await running.ann.wait(job.id, timeout_s=RECOVERY_TIMEOUT_S)

        async def all_reported() -> bool:
            ended = {got.job["id"] for got in receiver.got if got.job["status"] == "succeeded"}
            return ended == {job.id for job in jobs}

        await wait_for(all_reported, timeout_s=RECOVERY_TIMEOUT_S)
        assert len(receiver.got) == len({got.id for got in receiver.got})


async def test_a_broker_dies_and_work_goes_on(running: Running):
    await running.installation.brokers.kill("n1")
    job_id = (await submit(running.ann, "with two brokers", text="two brokers"))["id"]

    async def has_succeeded() -> bool:
        reply = await retried(lambda: running.ann._http.get(f"/v1/jobs/{job_id}"))
        return bool(reply.json()["status"] == "succeeded")

    await wait_for(has_succeeded, timeout_s=RECOVERY_TIMEOUT_S, interval_s=0.1)
    running.installation.brokers.start("n1")
    for name in EDGES:
        async with running.installation.client_of(name) as edge:
            assert (await submit(edge, "with two brokers", text="two brokers"))["id"] == job_id
