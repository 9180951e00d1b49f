"""`/v1/batches`, and submits with `Prefer: wait`."""

import anyio
import pytest

from schemas.job import JobKey
from tests.support.served_edge import ServedEdge
from tests.support.wait import wait_for

ECHO = {"endpoint": "echo", "input": {"text": "hello"}}


async def test_each_job_of_a_batch_is_judged_by_itself(edge: ServedEdge):
    bodies = [ECHO, {"endpoint": "nowhere", "input": {}}, {**ECHO, "foo": 1}, 7, {**ECHO, "tags": {"n": "4"}}]
    reply = await edge.ann.post("/v1/batches", json={"jobs": bodies})
    answer = reply.json()
    assert reply.status_code == 202
    assert [job["tags"] for job in answer["accepted"]] == [{}, {"n": "4"}]
    assert [(row["index"], row["problem"]["code"], row["problem"]["status"]) for row in answer["rejected"]] == [
        (1, "endpoint_unknown", 404),
        (2, "field_unknown", 400),
        (3, "input_invalid", 422),
    ]
    assert len(await edge.world.bus.job_store.keys()) == 2


async def test_the_same_batch_again_is_the_same_jobs(edge: ServedEdge):
    body, key = {"jobs": [ECHO] * 3}, {"Idempotency-Key": "nightly"}
    first, again = [(await edge.ann.post("/v1/batches", json=body, headers=key)).json() for _ in range(2)]
    ids = [job["id"] for job in first["accepted"]]
    assert len(set(ids)) == 3
    assert [job["id"] for job in again["accepted"]] == ids
    changed = {"jobs": [ECHO, {**ECHO, "priority": "low"}, ECHO]}
    other = (await edge.ann.post("/v1/batches", json=changed, headers=key)).json()
    assert [(row["index"], row["problem"]["code"]) for row in other["rejected"]] == [(1, "idempotency_mismatch")]


async def test_a_thousand_are_taken_and_one_more_is_not(edge: ServedEdge):
    reply = await edge.ann.post("/v1/batches", json={"jobs": [ECHO] * 1000}, timeout=120)
    assert len(reply.json()["accepted"]) == 1000
    for jobs in ([], [ECHO] * 1001):
        refused = await edge.ann.post("/v1/batches", json={"jobs": jobs})
        assert (refused.status_code, refused.json()["errors"][0]["path"]) == (422, "$.jobs")


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/jobs"), ("PUT", "/v1/jobs/mine")])
async def test_a_submit_may_wait_for_the_end(edge: ServedEdge, method: str, path: str):
    answers = []

    async def submit() -> None:
        answers.append(await edge.ann.request(method, path, json=ECHO, headers={"Prefer": "wait=30"}, timeout=40))

    async def recorded() -> bool:
        return bool(await edge.world.bus.job_store.keys())

    async def finish() -> None:
        await wait_for(recorded)
        (key,) = await edge.world.bus.job_store.keys()
        await edge.world.finish((await edge.world.jobs.read(JobKey(*key))).record.job)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(submit)
        tasks.start_soon(finish)
    (answer,) = answers
    assert (answer.status_code, answer.json()["status"]) == (202, "succeeded")


async def test_a_submit_that_waited_long_enough_says_how_it_stands(edge: ServedEdge):
    reply = await edge.ann.post("/v1/jobs", json=ECHO, headers={"Prefer": "respond-async, wait=1"})
    assert (reply.status_code, reply.json()["status"]) == (202, "queued")
