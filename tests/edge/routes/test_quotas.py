"""An exhausted quota, as each API reports it. No route checks quotas itself."""

import hashlib

from edge.owners.quotas import OwnerQuotaOverride
from tests.support.served_edge import ServedEdge

ECHO = {"endpoint": "echo", "input": {"text": "hello"}}


async def test_http_says_when_to_come_again_and_answers_replays(edge: ServedEdge):
    edge.world.limits["ann"] = OwnerQuotaOverride(submits_per_minute=2, waiting=10)
    headers = {"Idempotency-Key": "one"}
    first = await edge.ann.post("/v1/jobs", json=ECHO, headers=headers)
    await edge.ann.put("/v1/jobs/two", json=ECHO)
    refused = await edge.ann.post("/v1/jobs", json=ECHO)
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert 0 < int(refused.headers["retry-after"]) <= 30
    again = await edge.ann.post("/v1/jobs", json=ECHO, headers=headers)
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    assert (await edge.ann.put("/v1/jobs/two", json=ECHO)).status_code == 200
    assert (await edge.bob.post("/v1/jobs", json=ECHO)).status_code == 202


async def test_of_a_batch_as_many_are_taken_as_may_wait(edge: ServedEdge):
    edge.world.limits["ann"] = OwnerQuotaOverride(waiting=3)
    made = await edge.ann.post("/v1/batches", json={"jobs": [ECHO] * 5})
    assert made.status_code == 202
    assert len(made.json()["accepted"]) == 3
    assert {one["problem"]["code"] for one in made.json()["rejected"]} == {"quota_exceeded"}


async def test_bytes_are_refused_by_every_way_of_uploading_but_a_runners(edge: ServedEdge):
    edge.world.limits["ann"] = OwnerQuotaOverride(bytes=10)
    body = b"x" * 11
    tus = {"Tus-Resumable": "1.0.0", "Upload-Length": "11"}
    form = {"job": (None, '{"endpoint": "echo"}'), "file": ("a.mp4", body)}
    for reply in (
        await edge.ann.post("/v1/assets", content=body),
        await edge.ann.post("/v1/assets", files={"file": body}),
        await edge.ann.post("/v1/jobs", files=form),
        await edge.ann.post("/v1/uploads", headers=tus),
    ):
        assert (reply.status_code, reply.json()["code"]) == (429, "quota_exceeded")
        assert reply.headers["retry-after"]
    await edge.world.start(await edge.world.submit())
    result = await edge.runner.put(f"/v1/assets/{hashlib.sha256(body).hexdigest()}?owner=ann", content=body)
    assert result.status_code == 201, "what a job made is kept"
    assert (await edge.ann.post("/v1/assets", content=b"x")).status_code == 429


async def test_runpods_client_is_told_so_too(edge: ServedEdge):
    edge.world.limits["ann"] = OwnerQuotaOverride(waiting=1)
    asked = {"input": {"text": "hello"}}
    assert (await edge.ann.post("/v2/echo/run", json=asked)).status_code == 200
    refused = await edge.ann.post("/v2/echo/run", json=asked)
    assert (refused.status_code, bool(refused.json()["error"])) == (429, True)
