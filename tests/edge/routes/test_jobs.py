"""`/v1/jobs`: submit, read, list, cancel, retry and delete jobs."""

import base64
import hashlib
import json

import anyio
import pytest

from schemas import events as e
from schemas.job import JobFailure, JobKey, Output, OutputFile, Status
from tests.support.served_edge import ServedEdge

ECHO = {"endpoint": "echo", "input": {"text": "hello"}}


async def test_a_submit_is_accepted_and_can_be_read(edge: ServedEdge):
    reply = await edge.ann.post("/v1/jobs", json=ECHO)
    job = reply.json()
    assert reply.status_code == 202
    assert reply.headers["location"] == job["urls"]["self"] == f"/v1/jobs/{job['id']}"
    assert (job["status"], job["reason"], job["queue_position"], job["owner"]) == ("queued", "no_host", 0, "ann")
    assert (job["input"], job["attempt"], job["max_attempts"], job["round"]) == (
        {"text": "hello", "seconds": 0},
        0,
        3,
        1,
    )
    again = (await edge.ann.get(f"/v1/jobs/{job['id']}")).json()
    assert again == job


async def test_the_message_speaks_the_clients_language(edge: ServedEdge):
    reply = await edge.ann.post("/v1/jobs", json=ECHO, headers={"Accept-Language": "zh-CN,en;q=0.5"})
    assert reply.json()["message"] == "还没有可运行该任务的服务器接入"


async def test_a_job_with_nobody_ahead_is_next_in_line_from_its_first_answer(edge: ServedEdge):
    await edge.world.announce_capabilities()
    await edge.world.send_heartbeat()
    first = (await edge.ann.post("/v1/jobs", json=ECHO)).json()
    assert (first["reason"], first["queue_position"], first["message"]) == ("behind", 0, "Next in line")
    second = (await edge.ann.post("/v1/jobs", json=ECHO)).json()
    await edge.world.wait_until_indexed()
    views = [
        (await edge.ann.get(job["urls"]["self"], headers={"Accept-Language": "zh"})).json() for job in (first, second)
    ]
    told = [(view["queue_position"], view["message"]) for view in views]
    assert told == [(0, "马上开始"), (1, "前面还有任务，正在排队")]


async def test_the_same_key_is_the_same_job_and_another_body_is_refused(edge: ServedEdge):
    key = {"Idempotency-Key": "once"}
    first, second = [await edge.ann.post("/v1/jobs", json=ECHO, headers=key) for _ in range(2)]
    other = await edge.ann.post("/v1/jobs", json={"endpoint": "echo", "input": {}}, headers=key)
    assert first.json()["id"] == second.json()["id"]
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")


async def test_two_submits_at_once_with_one_key_are_one_job(edge: ServedEdge):
    ids: list[str] = []

    async def submit() -> None:
        reply = await edge.ann.post("/v1/jobs", json=ECHO, headers={"Idempotency-Key": "race"})
        ids.append(reply.json()["id"])

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(submit)
    assert len(set(ids)) == 1
    assert len(await edge.world.bus.job_store.keys()) == 1


async def test_put_is_202_then_200_then_409(edge: ServedEdge):
    replies = [
        await edge.ann.put("/v1/jobs/mine", json=body) for body in (ECHO, ECHO, {"endpoint": "echo", "input": {}})
    ]
    assert [reply.status_code for reply in replies] == [202, 200, 409]
    assert replies[2].json()["code"] == "conflict"
    assert (await edge.bob.put("/v1/jobs/mine", json=ECHO)).status_code == 202


async def test_another_owners_job_is_not_there(edge: ServedEdge):
    await edge.ann.put("/v1/jobs/mine", json=ECHO)
    for method, path in [
        ("GET", "/v1/jobs/mine"),
        ("GET", "/v1/jobs/mine/history"),
        ("GET", "/v1/jobs/mine/events"),
        ("GET", "/v1/jobs/mine/logs"),
        ("GET", "/v1/jobs/mine/files/a"),
        ("POST", "/v1/jobs/mine/cancel"),
        ("POST", "/v1/jobs/mine/retry"),
        ("DELETE", "/v1/jobs/mine"),
    ]:
        reply = await edge.bob.request(method, path)
        assert (reply.status_code, reply.json()["code"]) == (404, "not_found"), (method, path)
    assert (await edge.admin.get("/v1/jobs/mine?owner=ann")).json()["id"] == "mine"
    assert (await edge.bob.get("/v1/jobs/mine?owner=ann")).status_code == 403


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "body_malformed"),
        (b"[]", 400, "body_malformed"),
        (b"\xff\xfe", 400, "body_malformed"),
        (b"[" * 100_000, 400, "body_malformed"),
        (b'{"endpoint":"echo","input":{},"surprise":1}', 400, "field_unknown"),
        (b'{"endpoint":"echo","input":{},"policy":{"surprise":1}}', 400, "field_unknown"),
        (b'{"endpoint":"echo"}', 422, "input_invalid"),
        (b'{"endpoint":5,"input":{}}', 422, "input_invalid"),
        (b'{"endpoint":"echo","input":{"text":5}}', 422, "input_invalid"),
        (b'{"endpoint":"echo","input":{"nothing":5}}', 422, "input_invalid"),
        (b'{"endpoint":"echo","input":{},"not_before":"0001-01-01T00:00:00+14:00"}', 422, "input_invalid"),
        (b'{"endpoint":"echo","input":{},"deadline":"9999-12-31T23:59:59-14:00"}', 422, "input_invalid"),
        (b'{"endpoint":"nowhere","input":{}}', 404, "endpoint_unknown"),
        (b'{"endpoint":"echo","input":{"file":"sha256:' + b"a" * 64 + b'"}}', 422, "asset_missing"),
        (b'{"endpoint":"echo","input":{"file":"../../etc/passwd"}}', 422, "input_invalid"),
        (b'{"endpoint":"echo","input":{"text":"' + b"a" * 70_000 + b'"}}', 422, "input_invalid"),
        (b'{"endpoint":"echo","input":{"text":"' + b"a" * 10_000_000 + b'"}}', 413, "body_too_large"),
    ],
)
async def test_bad_bodies_are_named_and_nothing_is_written(edge: ServedEdge, body, status, code):
    reply = await edge.ann.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    problem = reply.json()
    assert (reply.status_code, problem["code"], problem["status"]) == (status, code, status)
    assert reply.headers["content-type"] == "application/problem+json"
    assert not await edge.world.bus.job_store.keys()


async def test_input_errors_name_the_field(edge: ServedEdge):
    reply = await edge.ann.post("/v1/jobs", json={"endpoint": "echo", "input": {"text": 5}})
    assert reply.json()["errors"][0]["path"] == "$.input.text"
    missing = await edge.ann.post("/v1/jobs", json={"endpoint": "echo", "input": {"file": "sha256:" + "b" * 64}})
    assert missing.json()["missing"] == ["sha256:" + "b" * 64]


async def test_ids_that_are_no_token_are_refused(edge: ServedEdge):
    for job_id in ("a.b", "a%20b", "x" * 65, "a%0A", "%2A"):
        reply = await edge.ann.put(f"/v1/jobs/{job_id}", json=ECHO)
        assert (reply.status_code, reply.json()["code"]) == (422, "input_invalid"), job_id


async def test_multipart_carries_the_files(edge: ServedEdge):
    files = {"file": ("a.txt", b"content of a", "text/plain")}
    reply = await edge.ann.post("/v1/jobs", data={"job": json.dumps({"endpoint": "echo"})}, files=files)
    digest = hashlib.sha256(b"content of a").hexdigest()
    assert (reply.status_code, reply.json()["input"]["file"]) == (202, f"sha256:{digest}")
    assert (await edge.ann.get(f"/v1/assets/{digest}")).content == b"content of a"
    assert (await edge.bob.get(f"/v1/assets/{digest}")).status_code == 404


async def test_times_are_reported_in_utc_whatever_zone_they_came_in(edge: ServedEdge):
    times = {"not_before": "2030-01-01T08:00:00+08:00", "deadline": "2030-01-02T00:00:00-01:00"}
    job = (await edge.ann.post("/v1/jobs", json=ECHO | times)).json()
    assert (job["not_before"], job["deadline"]) == ("2030-01-01T00:00:00Z", "2030-01-02T01:00:00Z")


async def test_a_long_trace_id_is_cut_and_a_given_one_is_kept(edge: ServedEdge):
    long = await edge.ann.post("/v1/jobs", json=ECHO, headers={"X-Trace-Id": "t" * 5000})
    given = await edge.ann.post("/v1/jobs", json=ECHO | {"trace_id": "mine"}, headers={"X-Trace-Id": "other"})
    assert (long.json()["trace_id"], given.json()["trace_id"]) == ("t" * 128, "mine")


async def test_a_form_may_carry_the_job_as_a_file(edge: ServedEdge):
    files = {"job": ("blob", json.dumps({"endpoint": "echo"}), "application/json"), "file": ("a.txt", b"a")}
    reply = await edge.ann.post("/v1/jobs", files=files)
    assert (reply.status_code, reply.json()["input"]["file"][:7]) == (202, "sha256:")


JOB = ("job", (None, json.dumps({"endpoint": "echo"})))
FILE = ("file", ("../../etc/passwd", b"x"))


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        ([JOB, JOB, FILE], 400, "body_malformed"),
        ([JOB, FILE, FILE], 422, "input_invalid"),
        ([JOB, FILE, ("more", (None, "text"))], 400, "field_unknown"),
        ([JOB, ("more", ("a", b"x"))], 422, "input_invalid"),
        ([("job", (None, '{"endpoint":"nowhere"}')), FILE], 404, "endpoint_unknown"),
        ([("job", (None, '{"endpoint":"echo","input":{"text":5}}')), FILE], 422, "input_invalid"),
        (
            [("job", (None, '{"endpoint":"echo","input":{"file":"twice"}}')), FILE],
            422,
            "input_invalid",
        ),
        ([("job", ("j", b" " * 1_100_000, "application/json"))], 413, "body_too_large"),
    ],
)
async def test_a_bad_form_is_named_and_nothing_of_it_is_kept(edge: ServedEdge, sent, status, code):
    reply = await edge.ann.post("/v1/jobs", files=sent)
    assert (reply.status_code, reply.json()["code"]) == (status, code)
    assert not await edge.world.bus.job_store.keys()
    assert (await edge.ann.get("/v1/assets")).json()["assets"] == []


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/assets"])
@pytest.mark.parametrize(
    "part",
    [
        b'Content-Disposition: form-data; name="job"\r\nContent-Type: text/plain; charset=nope\r\n\r\n{}',
        b'Content-Disposition: form-data; name="job"\r\n\r\n\xff\xfe',
    ],
)
async def test_a_form_that_cannot_be_read_is_a_malformed_body(edge: ServedEdge, path, part):
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    for body in (b"--x\r\n" + part + b"\r\n--x--\r\n", b"--x\r\n" + part):
        reply = await edge.ann.post(path, content=body, headers=headers)
        assert (reply.status_code, reply.json()["code"]) == (400, "body_malformed"), reply.text


@pytest.mark.parametrize(
    ("fields", "code"), [({}, "body_malformed"), ({"job": "{"}, "body_malformed"), ({"job": "[]"}, "body_malformed")]
)
async def test_a_multipart_without_a_job_is_named(edge: ServedEdge, fields, code):
    reply = await edge.ann.post("/v1/jobs", data=fields, files={"file": ("a", b"x")})
    assert (reply.status_code, reply.json()["code"]) == (400, code)


async def test_cancel_retry_and_delete_of_a_waiting_job(edge: ServedEdge):
    await edge.ann.put("/v1/jobs/mine", json=ECHO)
    refused = await edge.ann.delete("/v1/jobs/mine")
    cancelled = await edge.ann.post("/v1/jobs/mine/cancel")
    final = await edge.ann.post("/v1/jobs/mine/cancel")
    retried = await edge.ann.post("/v1/jobs/mine/retry")
    assert (refused.status_code, refused.json()["code"]) == (409, "job_not_final")
    assert (cancelled.status_code, cancelled.json()["status"]) == (202, "cancelled")
    assert (final.status_code, final.json()["code"]) == (409, "job_final")
    assert (retried.status_code, retried.json()["status"], retried.json()["round"]) == (202, "queued", 2)
    await edge.ann.post("/v1/jobs/mine/cancel")
    assert (await edge.ann.delete("/v1/jobs/mine")).status_code == 204
    assert (await edge.ann.get("/v1/jobs/mine")).status_code == 404


async def test_a_finished_job_shows_output_files_log_and_history(edge: ServedEdge):
    job = (await edge.ann.put("/v1/jobs/mine", json=ECHO)).json()
    digest = await edge.world.put("ann", b"0123456789", "result.txt")
    record = (await edge.world.jobs.read(JobKey("ann", "mine"))).record.job
    await edge.world.start(record)
    file = OutputFile("result.txt", digest, 10, "text/plain")
    await edge.world.write_event(record.key, e.Succeeded(Output((file,), {"text": "hi"}), log=digest))
    job = (await edge.ann.get("/v1/jobs/mine")).json()
    assert (job["status"], job["output"]["data"], job["output"]["files"][0]["sha256"]) == (
        "succeeded",
        {"text": "hi"},
        digest,
    )
    ranged = await edge.ann.get(job["output"]["files"][0]["url"], headers={"Range": "bytes=2-4"})
    assert ranged.content in (b"234", b"0123456789")  # the memory store answers whole files
    assert (await edge.ann.get(job["urls"]["logs"])).text == "0123456789"
    assert (await edge.ann.get("/v1/jobs/mine/files/nothing")).status_code == 404
    history = (await edge.ann.get("/v1/jobs/mine/history")).json()
    assert [row["event"]["type"] for row in history] == ["submitted", "started", "succeeded"]
    assert [row["status"] for row in history] == ["queued", "running", "succeeded"]


async def test_wait_holds_until_the_end(edge: ServedEdge):
    await edge.ann.put("/v1/jobs/mine", json=ECHO)
    record = (await edge.world.jobs.read(JobKey("ann", "mine"))).record.job
    statuses: list[str] = []

    async def wait() -> None:
        statuses.append((await edge.ann.get("/v1/jobs/mine", headers={"Prefer": "wait=20"})).json()["status"])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await edge.world.start(record)
        assert not statuses
        await edge.world.write_event(record.key, e.Failed(JobFailure("no_face", "no face", "client", retryable=False)))
    assert statuses == ["failed"]


async def test_wait_that_runs_out_answers_the_job_as_it_stands(edge: ServedEdge):
    await edge.ann.put("/v1/jobs/mine", json=ECHO)
    assert (await edge.ann.get("/v1/jobs/mine?wait=0.05")).json()["status"] == "queued"
    assert (await edge.ann.get("/v1/jobs/mine?wait=61")).status_code == 422


async def test_the_list_is_newest_first_in_pages_and_filtered(edge: ServedEdge):
    for number in range(5):
        body = {**ECHO, "tags": {"n": str(number)}, "priority": "high" if number == 3 else "normal"}
        await edge.ann.put(f"/v1/jobs/j{number}", json=body)
    await edge.ann.post("/v1/jobs/j1/cancel")
    first = (await edge.ann.get("/v1/jobs?limit=3")).json()
    second = (await edge.ann.get("/v1/jobs", params={"limit": 3, "cursor": first["next_cursor"]})).json()
    assert [job["id"] for job in first["jobs"] + second["jobs"]] == ["j4", "j3", "j2", "j1", "j0"]
    assert second["next_cursor"] is None
    assert [j["id"] for j in (await edge.ann.get("/v1/jobs?status=cancelled")).json()["jobs"]] == ["j1"]
    assert [j["id"] for j in (await edge.ann.get("/v1/jobs?tag=n:2")).json()["jobs"]] == ["j2"]
    assert [j["id"] for j in (await edge.ann.get("/v1/jobs?priority=high")).json()["jobs"]] == ["j3"]
    assert (await edge.bob.get("/v1/jobs")).json()["jobs"] == []
    huge = base64.urlsafe_b64encode(b"9" * 30 + b".x").decode()
    for query in ("status=nothing", "limit=0", "cursor=!", "tag=x", "priority=urgent", f"cursor={huge}"):
        assert (await edge.ann.get(f"/v1/jobs?{query}")).status_code == 422, query
    (unknown,) = (await edge.ann.get("/v1/jobs?status=nothing")).json()["errors"]
    assert unknown == {"path": "$.status", "message": f"Invalid enum value 'nothing': it is one of {', '.join(Status)}"}
    named = (await edge.ann.get("/v1/jobs?limit=0")).json()
    assert named["errors"][0]["path"] == "$.limit"
    assert named["detail"].startswith("$.limit: ")
