"""L2: whoever has the file key of a host asks for files that no job of that host is about."""

from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import httpx2
import pytest
from msgspec import Struct

from edge.index import index
from schemas import events as e
from schemas.credentials import Scope
from schemas.job import Job
from tests.support.http_server import open_client
from tests.support.served_edge import ServedEdge, serve_edge

FILM = b"the film of ann"
OTHER = b"a film of ann that no job names"
HOST = "gpu-1"


def place(body: bytes) -> str:
    return f"/v1/assets/{sha256(body).hexdigest()}"


class Thief(Struct, frozen=True):
    """An attacker with the key of gpu-1. Ann has two films, and all jobs use the first. Bob has no job."""

    edge: ServedEdge
    host: httpx2.AsyncClient

    async def fetch(self, body: bytes = FILM, owner: str = "ann") -> int:
        """Return the status of a read. GET and HEAD must be rejected alike."""
        head = await self.host.head(place(body), params={"owner": owner})
        reply = await self.host.get(place(body), params={"owner": owner})
        assert reply.status_code == head.status_code
        if reply.status_code != 200:
            assert reply.json()["code"] == "forbidden"
        return reply.status_code

    async def store(self, body: bytes, owner: str = "ann") -> int:
        """Return the status of a write."""
        return (await self.host.put(place(body), params={"owner": owner}, content=body)).status_code

    async def job(self) -> Job:
        """Submit a job that uses the film."""
        body = {"endpoint": "echo", "input": {"file": f"sha256:{sha256(FILM).hexdigest()}"}}
        accepted = await self.edge.world.jobs.submit("ann", body)
        await self.edge.world.publish_window.wait_until_idle()
        await self.edge.world.wait_until_indexed()
        return accepted.entry.record.job


@pytest.fixture
async def thief(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Thief]:
    monkeypatch.setattr(index, "QUERY_RETRY_DELAYS_S", (0.0,))
    async with serve_edge(tmp_path) as edge:
        await edge.world.announce_capabilities(host=HOST)
        for body in (FILM, OTHER):
            assert (await edge.ann.put(place(body), content=body)).status_code == 201
        made = await edge.keys.create(HOST, (Scope.RUNNER,), host=HOST)
        headers = {"Authorization": f"Bearer {made.text}"}
        async with open_client(edge.url, headers=headers, timeout=20) as host:
            yield Thief(edge, host)


async def test_it_reads_the_inputs_of_jobs_that_its_host_holds_or_may_be_given_and_no_other_file(thief: Thief):
    world = thief.edge.world
    assert await thief.fetch() == 403
    elsewhere = await thief.job()
    assert await thief.fetch() == 200, "the inputs of a job that waits are fetched ahead"
    await world.start(elsewhere, host="gpu-2")
    assert await thief.fetch() == 403, "another host holds the job"
    mine = await world.start(await thief.job(), host=HOST)
    assert await thief.fetch() == 200
    assert await thief.fetch(OTHER) == 403
    assert await thief.fetch(owner="bob") == 403
    await world.finish_running(mine)
    assert await thief.fetch() == 403, "the job has ended"


async def test_it_reads_no_input_of_a_job_that_waits_for_an_endpoint_of_others(thief: Thief):
    await thief.job()
    await thief.edge.world.bus.capabilities.delete(HOST)
    await thief.edge.world.announce_capabilities(host="gpu-2")
    assert await thief.fetch() == 403


async def test_it_stores_only_for_owners_whose_job_its_host_holds(thief: Thief):
    world = thief.edge.world
    job = await world.submit()
    assert await thief.store(b"planted") == 403
    await world.start(job, host="gpu-2")
    assert await thief.store(b"planted") == 403
    mine = await world.start(await world.submit(), host=HOST)
    assert await thief.store(b"made") == 201
    assert await thief.store(b"planted", "bob") == 403
    assert await thief.store(b"planted", HOST) == 403, "its own name is nobody's"
    await world.finish_running(mine)
    assert await thief.store(b"planted") == 403


async def test_a_host_that_was_cut_off_stores_its_result_until_another_host_has_the_job(thief: Thief):
    world = thief.edge.world
    running = await world.start(await thief.job(), host=HOST)
    released = await world.write_event(running.key, e.AttemptReleased("host_gone"))
    assert await thief.store(b"made meanwhile") == 201, "it can still take the job back and end it"
    assert await thief.fetch() == 200
    await world.start(released, host="gpu-2")
    assert await thief.store(b"too late") == 403


async def test_it_neither_lists_nor_deletes_nor_uploads_in_another_way(thief: Thief):
    await thief.edge.world.start(await thief.job(), host=HOST)
    tus = {"Tus-Resumable": "1.0.0", "Upload-Length": "11"}
    for owner in ({}, {"owner": "ann"}):
        for ask in (
            thief.host.get("/v1/assets", params=owner),
            thief.host.delete(place(FILM), params=owner),
            thief.host.post("/v1/assets", params=owner, content=b"planted"),
            thief.host.post("/v1/assets/check", params=owner, json={"digests": []}),
            thief.host.post("/v1/uploads", params=owner, headers=tus),
            thief.host.post("/v1/tokens", params=owner, json={"scopes": ["assets:read"]}),
            thief.host.get("/v1/jobs", params=owner),
        ):
            reply = await ask
            assert (reply.status_code, reply.json()["code"]) == (403, "forbidden"), reply.request.url
    assert await thief.fetch() == 200


async def test_a_token_of_its_key_reads_no_more_than_the_key(thief: Thief):
    made = await thief.host.post("/v1/tokens", json={"scopes": ["runner"]})
    path, query = place(FILM), {"owner": "ann", "token": made.json()["token"]}
    assert (await thief.edge.anyone.get(path, params=query)).status_code == 403
    await thief.edge.world.start(await thief.job(), host=HOST)
    assert (await thief.edge.anyone.get(path, params=query)).status_code == 200


async def test_a_key_of_no_host_is_bound_to_jobs_too(thief: Thief):
    edge = thief.edge
    assert (await edge.runner.get(place(FILM), params={"owner": "ann"})).status_code == 403
    await edge.world.start(await thief.job(), host="gpu-7")
    assert (await edge.runner.get(place(FILM), params={"owner": "ann"})).status_code == 200


async def test_an_admin_needs_no_job(thief: Thief):
    assert (await thief.edge.admin.get(place(FILM), params={"owner": "ann"})).status_code == 200
