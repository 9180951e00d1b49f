"""What RunPod documents and its client does not use: bodies, policies, times, errors."""

import pytest

from schemas import events as e
from schemas.job import JobFailure
from tests.edge.facades.runpod.conftest import RunpodEdge


async def post(cloud: RunpodEdge, path: str, **body):
    return await cloud.edge.ann.post(f"/v2/echo/{path}", json=body)


async def test_a_policy_is_translated(cloud: RunpodEdge):
    policy = {"executionTimeout": 90_000, "ttl": 3_600_000, "lowPriority": True}
    said = (await post(cloud, "run", input={"text": "x"}, policy=policy, unknown="ignored")).json()
    job = await cloud.job(said["id"])
    assert said == {"id": job.id, "status": "IN_QUEUE"}
    assert (job.policy.execution_timeout_s, job.policy.start_timeout_s, job.priority) == (90.0, 3600.0, "low")


async def test_what_a_policy_leaves_out_is_the_endpoints(cloud: RunpodEdge):
    for policy in (None, {}, {"executionTimeout": 0, "ttl": None, "lowPriority": False}):
        said = (await post(cloud, "run", input={}, policy=policy, webhook="")).json()
        job = await cloud.job(said["id"])
        assert (job.policy.execution_timeout_s, job.policy.start_timeout_s, job.priority) == (None, 86400.0, "normal")
        assert job.webhook is None


async def test_native_fields_may_be_added(cloud: RunpodEdge):
    said = (await post(cloud, "run", input={}, tags={"a": "b"}, priority="high", trace_id="t")).json()
    job = await cloud.job(said["id"])
    assert (job.tags, job.priority, job.trace_id) == ({"a": "b"}, "high", "t")


async def test_runsync_answers_after_its_wait_as_the_job_stands(cloud: RunpodEdge):
    reply = await cloud.edge.ann.post("/v2/echo/runsync?wait=1", json={"input": {"text": "x"}})
    said = reply.json()
    assert (reply.status_code, said["status"]) == (200, "IN_QUEUE")
    assert "output" not in said


async def test_times_are_milliseconds(cloud: RunpodEdge):
    said = (await post(cloud, "run", input={})).json()
    world = cloud.edge.world
    world.time.advance(seconds=31)
    running = await world.start(await cloud.job(said["id"]))
    world.time.advance(seconds=2)
    await cloud.finish(running)
    told = (await cloud.edge.ann.get(f"/v2/echo/status/{said['id']}")).json()
    assert (told["delayTime"], told["executionTime"]) == (31_000, 2_000)


@pytest.mark.parametrize(
    ("ended", "status", "error"),
    [
        (e.Failed(JobFailure("no_face", "no face", "client", retryable=False)), "FAILED", "no_face: no face"),
        (
            e.Failed(JobFailure("execution_timeout", "too long", "image", retryable=False)),
            "TIMED_OUT",
            "execution_timeout: too long",
        ),
        (e.Cancelled(), "CANCELLED", None),
        (e.Expired("start_timeout"), "TIMED_OUT", "expired: The job expired before it could start"),
    ],
)
async def test_ends_are_reported_in_runpods_words(cloud: RunpodEdge, ended, status, error):
    said = (await post(cloud, "run", input={})).json()
    job = await cloud.job(said["id"])
    if isinstance(ended, e.Failed):
        job = await cloud.edge.world.start(job)
    await cloud.edge.world.write_event(job.key, ended)
    told = (await cloud.edge.ann.get(f"/v2/echo/status/{job.id}")).json()
    assert (told["status"], told.get("error")) == (status, error)
    again = (await cloud.edge.ann.post(f"/v2/echo/retry/{job.id}")).json()
    assert again == {"id": job.id, "status": "IN_QUEUE"}


async def test_retry_of_what_has_not_failed_is_refused(cloud: RunpodEdge):
    said = (await post(cloud, "run", input={})).json()
    reply = await cloud.edge.ann.post(f"/v2/echo/retry/{said['id']}")
    assert (reply.status_code, reply.json()["code"]) == (409, "job_not_final")


async def test_a_key_counts_with_and_without_bearer(cloud: RunpodEdge):
    for headers in (
        {"Authorization": cloud.edge.texts["ann"]},
        {"Authorization": f"Bearer {cloud.edge.texts['ann']}"},
    ):
        assert (await cloud.edge.anyone.get("/v2/echo/health", headers=headers)).status_code == 200
    for headers in ({}, {"Authorization": "lamp_nobody_aaaaaaaaaaaaaaaaaaaa"}, {"Authorization": "Bearer"}):
        reply = await cloud.edge.anyone.get("/v2/echo/health", headers=headers)
        assert (reply.status_code, reply.json()["code"]) == (401, "unauthorized")
        assert reply.json()["error"] == reply.json()["detail"]


async def test_another_owners_or_endpoints_job_is_not_there(cloud: RunpodEdge):
    said = (await post(cloud, "run", input={})).json()
    job_id = said["id"]
    for client, endpoint in ((cloud.edge.bob, "echo"), (cloud.edge.ann, "other")):
        for method, verb in (("GET", "status"), ("GET", "stream"), ("POST", "cancel"), ("POST", "retry")):
            reply = await client.request(method, f"/v2/{endpoint}/{verb}/{job_id}")
            assert (reply.status_code, reply.json()["code"]) == (404, "not_found"), (verb, endpoint)
    for strange in ("a.b", "x" * 65, "%2A"):
        assert (await cloud.edge.ann.get(f"/v2/echo/status/{strange}")).status_code == 404
    assert (await cloud.job(job_id)).status == "queued"


BAD = [
    (b"{", 400, None),
    (b"[]", 400, None),
    (b"{}", 422, "$.input"),
    (b'{"input":"text"}', 422, "$.input"),
    (b'{"input":{"text":5}}', 422, "$.input.text"),
    (b'{"input":{},"policy":{"ttl":"soon"}}', 422, "$.policy.ttl"),
    (b'{"input":{},"policy":{"ttl":-1}}', 422, "$.policy.ttl"),
    (b'{"input":{},"policy":{"ttl":1e300}}', 422, "$.policy.start_timeout_s"),
    (b'{"input":{},"policy":5}', 422, "$.policy"),
    (b'{"input":{},"webhook":5}', 422, "$.webhook"),
    (b'{"input":{},"webhook":"ftp://x"}', 422, "$.webhook.url"),
    (b'{"input":{"text":"' + b"x" * 1_100_000 + b'"}}', 413, None),
]


async def test_bad_bodies_are_named(cloud: RunpodEdge):
    headers = {"Content-Type": "application/json"}
    for body, status, path in BAD:
        reply = await cloud.edge.ann.post("/v2/echo/run", content=body, headers=headers)
        problem = reply.json()
        assert reply.status_code == status, (body[:40], problem)
        assert path is None or problem["errors"][0]["path"] == path
    assert not await cloud.edge.world.bus.job_store.keys()


async def test_a_wait_that_is_no_number_is_named(cloud: RunpodEdge):
    reply = await cloud.edge.ann.post("/v2/echo/runsync?wait=soon", json={"input": {}})
    assert (reply.status_code, reply.json()["code"]) == (422, "input_invalid")


async def test_a_webhook_is_kept_with_the_job(cloud: RunpodEdge):
    said = (await post(cloud, "run", input={}, webhook="https://hooks.example/runpod")).json()
    job = await cloud.job(said["id"])
    assert job.webhook is not None
    assert (job.webhook.url, job.webhook.events) == ("https://hooks.example/runpod", ("state",))
