"""Commands of the gateway and their replies, message by message."""

import pytest

from schemas.job import JobKey, Status
from tests.edge.facades.gateway.conftest import GatewayEdge

TEXT = {"text": "hello"}
ABSENT = f"sha256:{'0' * 64}"
OFF = "任务已排队，请等待约2分钟"


async def test_a_submit_while_the_host_is_off_is_accepted_as_offline(gateway: GatewayEdge):
    async with gateway.connect() as desk:
        said = await desk.ask("gpu.job.submit", TEXT, task_type="echo", request_id="r1", trace_id="t1")
    assert (said["type"], said["request_id"], said["trace_id"], said["error"]) == (
        "gpu.power.offline",
        "r1",
        "t1",
        False,
    )
    payload = said["payload"]
    assert payload["wait_seconds"] == 120
    assert payload["message"] == "GPU is off; the job waits about 2 minutes"
    assert (payload["status"], payload["queue_position"], payload["missing"]) == ("queued", 0, [])
    job = (await gateway.world.jobs.read(JobKey("ann", payload["job_id"]))).record.job
    assert (job.status, job.input["text"], job.request_id, job.trace_id) == (Status.QUEUED, "hello", "r1", "t1")


async def test_a_submit_while_a_host_is_up_is_acknowledged(gateway: GatewayEdge):
    await gateway.world.announce_capabilities()
    await gateway.world.send_heartbeat()
    async with gateway.connect() as desk:
        said = await desk.ask("gpu.job.submit", TEXT, task_type="echo", request_id="r1")
    assert said["type"] == "ack"
    assert set(said["payload"]) >= {"job_id", "status", "queue_position", "wait_seconds", "missing", "message"}
    assert said["payload"]["wait_seconds"] == 0


@pytest.mark.parametrize("header", ["zh-CN", ""])
async def test_chinese_is_spoken_unless_asked_otherwise(gateway: GatewayEdge, header: str):
    async with gateway.connect(Accept_Language=header) as desk:
        said = await desk.ask("gpu.job.submit", TEXT, task_type="heygem_submit", request_id="r1")
    assert said["payload"]["message"] == OFF


async def test_the_same_request_id_is_the_same_job(gateway: GatewayEdge):
    async with gateway.connect() as desk:
        first = await desk.ask("gpu.job.submit", TEXT, task_type="echo", request_id="r1")
    async with gateway.connect() as desk:
        again = await desk.ask("gpu.job.submit", TEXT, task_type="echo", request_id="r1")
        other = await desk.ask("gpu.job.submit", {"text": "other"}, task_type="echo", request_id="r1")
    async with gateway.connect("bob") as desk:
        bobs = await desk.ask("gpu.job.submit", TEXT, task_type="echo", request_id="r1")
    assert again["payload"]["job_id"] == first["payload"]["job_id"] != bobs["payload"]["job_id"]
    assert (other["type"], other["result"]["error"]["code"]) == ("error", "idempotency_mismatch")
    assert other["request_id"] == "r1"


async def test_a_request_sent_anew_after_its_job_ended_gets_the_result(gateway: GatewayEdge):
    async with gateway.connect() as desk:
        first = await desk.ask("gpu.job.submit", TEXT, task_type="echo", request_id="r1")
    entry = await gateway.world.jobs.read(JobKey("ann", first["payload"]["job_id"]))
    await gateway.world.finish(entry.record.job)
    async with gateway.connect() as desk:
        again = await desk.ask("gpu.job.submit", TEXT, task_type="echo", request_id="r1")
        result = await desk.wait_for_type("gpu.job.result")
    assert again["payload"]["status"] == "succeeded"
    assert (result["request_id"], result["result"]["status"], result["error"]) == ("r1", "succeeded", False)


async def test_a_code_is_the_job_id_and_request_id_is_only_echoed(gateway: GatewayEdge):
    async with gateway.connect() as desk:
        first = await desk.ask("gpu.job.submit", TEXT | {"code": "c-1"}, task_type="echo", request_id="r1")
        again = await desk.ask("gpu.job.submit", TEXT | {"code": "c-1"}, task_type="echo", request_id="r2")
        other = await desk.ask("gpu.job.submit", {"text": "other", "code": "c-1"}, task_type="echo", request_id="r1")
        worded = await desk.ask("gpu.job.submit", {"text": "hello", "seconds": 0, "code": "c-1"}, task_type="echo")
    assert first["payload"]["job_id"] == again["payload"]["job_id"] == worded["payload"]["job_id"] == "c-1"
    assert again["request_id"] == "r2"
    assert other["result"]["error"]["code"] == "conflict"


async def test_options_and_input_stand_side_by_side_or_apart(gateway: GatewayEdge):
    flat = {"text": "a", "priority": "high", "tags": {"project": "x"}, "policy": {"max_attempts": 2}}
    nested = {"input": {"text": "a"}, "priority": "high", "tags": {"project": "x"}, "policy": {"max_attempts": 2}}
    async with gateway.connect() as desk:
        for payload in (flat, nested):
            said = await desk.ask("gpu.job.submit", payload, task_type="echo")
            job = said["result"]
            assert (job["input"]["text"], job["priority"], job["tags"], job["max_attempts"]) == (
                *("a", "high"),
                *({"project": "x"}, 2),
            )


async def test_files_may_follow_the_submit(gateway: GatewayEdge):
    async with gateway.connect() as desk:
        said = await desk.ask("gpu.job.submit", {"file": ABSENT}, task_type="echo", request_id="r1")
        assert (said["payload"]["status"], said["payload"]["missing"]) == ("scheduled", [ABSENT])


async def test_a_batch_is_answered_once_and_names_what_was_not_accepted(gateway: GatewayEdge):
    jobs = [{"text": "a"}, {"nonsense": 1}, {"text": "b", "code": "c-2"}, 7]
    async with gateway.connect() as desk:
        said = await desk.ask("gpu.job.submit", {"jobs": jobs}, task_type="echo", request_id="r1")
        again = await desk.ask("gpu.job.submit", {"jobs": jobs}, task_type="echo", request_id="r1")
    assert said["type"] == "gpu.power.offline"
    made = [job["job_id"] for job in said["payload"]["jobs"]]
    assert len(made) == 2
    assert made[1] == "c-2"
    assert [one["index"] for one in said["payload"]["rejected"]] == [1, 3]
    assert [job["job_id"] for job in again["payload"]["jobs"]] == made
    texts = [(await gateway.world.jobs.read(JobKey("ann", name))).record.job.input["text"] for name in made]
    assert texts == ["a", "b"]


@pytest.mark.parametrize("jobs", [[], "many", [{}] * 1001, [{"nonsense": 1}]])
async def test_a_batch_of_nothing_is_refused(gateway: GatewayEdge, jobs: object):
    async with gateway.connect() as desk:
        said = await desk.ask("gpu.job.submit", {"jobs": jobs}, task_type="echo", request_id="r1")
    assert (said["type"], said["error"], said["result"]["error"]["code"]) == ("error", True, "input_invalid")


async def test_query_and_cancel_answer_the_job(gateway: GatewayEdge):
    async with gateway.connect() as desk:
        await desk.ask("gpu.job.submit", TEXT | {"code": "c-1"}, task_type="echo", request_id="r1")
        seen = await desk.ask("gpu.job.query", {"job_id": "c-1"}, request_id="q")
        gone = await desk.ask("gpu.job.cancel", {"job_id": "c-1"}, request_id="c")
        final = await desk.ask("gpu.job.cancel", {"job_id": "c-1"}, request_id="c")
    assert (seen["type"], seen["request_id"], seen["result"]["id"]) == ("gpu.job.status", "q", "c-1")
    assert (gone["type"], gone["result"]["status"]) == ("gpu.job.status", "cancelled")
    assert final["result"]["error"]["code"] == "job_final"


async def test_another_owners_job_is_not_there(gateway: GatewayEdge):
    async with gateway.connect() as ann:
        await ann.ask("gpu.job.submit", TEXT | {"code": "c-1"}, task_type="echo")
    async with gateway.connect("bob") as bob:
        for verb in ("query", "cancel"):
            said = await bob.ask(f"gpu.job.{verb}", {"job_id": "c-1"}, request_id="q")
            assert said["result"]["error"]["code"] == "not_found"


async def test_hosts_and_ping(gateway: GatewayEdge):
    await gateway.world.announce_capabilities()
    async with gateway.connect() as desk:
        hosts = await desk.ask("gpu.status", request_id="h")
        pong = await desk.ask("ping", {"n": 1}, request_id="p", trace_id="t")
    assert [host["id"] for host in hosts["result"]["hosts"]] == ["gpu-1"]
    assert (hosts["type"], hosts["payload"]["online"]) == ("gpu.status", False)
    assert (pong["type"], pong["request_id"], pong["trace_id"]) == ("pong", "p", "t")


async def test_an_asset_is_deleted_or_not_there_or_in_use(gateway: GatewayEdge):
    held = await gateway.world.put("ann", b"held")
    free = await gateway.world.put("ann", b"free")
    await gateway.world.announce_capabilities()
    async with gateway.connect(Accept_Language="zh") as desk:
        await desk.ask("gpu.job.submit", {"file": f"sha256:{held}"}, task_type="echo")
        used = await desk.ask("gpu.job.submit", {"sha256": held}, task_type="delete_asset", request_id="d1")
        gone = await desk.ask("gpu.job.submit", {"sha256": f"sha256:{free}"}, task_type="delete_asset", request_id="d2")
        none = await desk.ask("gpu.job.submit", {"sha256": free}, task_type="delete_asset", request_id="d3")
    assert (used["type"], used["result"]["error"]["code"]) == ("error", "asset_in_use")
    assert (gone["type"], gone["error"], gone["payload"]["message"]) == ("gpu.job.result", False, "删除成功")
    assert gone["result"]["hosts_pending"] == ["gpu-1"]
    assert (none["type"], none["error"], none["error_msg"]) == ("gpu.job.result", True, "删除失败：文件不存在")
    assert none["request_id"] == "d3"


@pytest.mark.parametrize(
    ("who", "kind", "task", "payload"),
    [
        ("reader", "gpu.job.submit", "echo", TEXT),
        ("reader", "gpu.job.cancel", "", {"job_id": "c-1"}),
        ("reader", "gpu.job.submit", "delete_asset", {"sha256": "0" * 64}),
        ("reader", "gpu.status", "", {}),
        ("reader", "gpu.power.state", "", {"host": "gpu-1"}),
        ("blind", "gpu.job.query", "", {"job_id": "c-1"}),
        ("blind", "resume", "", {"after": "1-1"}),
    ],
)
async def test_a_key_without_the_scope_is_refused(gateway: GatewayEdge, who: str, kind: str, task: str, payload: dict):
    async with gateway.connect(who) as desk:
        said = await desk.ask(kind, payload, task_type=task, request_id="r")
    assert (said["type"], said["result"]["error"]["code"], said["request_id"]) == ("error", "forbidden", "r")


@pytest.mark.parametrize(
    ("kind", "task", "payload", "code"),
    [
        ("gpu.job.submit", "echo", {"nonsense": 1}, "input_invalid"),
        ("gpu.job.submit", "echo", TEXT | {"code": "a.b"}, "input_invalid"),
        ("gpu.job.submit", "echo", TEXT | {"code": 7}, "input_invalid"),
        ("gpu.job.submit", "echo", TEXT | {"priority": "urgent"}, "input_invalid"),
        ("gpu.job.submit", "echo", {"input": TEXT, "nonsense": 1}, "field_unknown"),
        ("gpu.job.submit", "nothing", TEXT, "endpoint_unknown"),
        ("gpu.job.submit", "", TEXT, "input_invalid"),
        ("gpu.job.submit", "delete_asset", {}, "input_invalid"),
        ("gpu.job.query", "", {}, "input_invalid"),
        ("gpu.job.query", "", {"job_id": "a.b"}, "input_invalid"),
        ("gpu.job.cancel", "", {"job_id": "none"}, "not_found"),
        ("resume", "", {}, "input_invalid"),
        ("gpu.job.explode", "", {}, "input_invalid"),
    ],
)
async def test_what_cannot_be_done_is_an_error_and_the_connection_stays(
    gateway: GatewayEdge, kind: str, task: str, payload: dict, code: str
):
    async with gateway.connect(Accept_Language="zh") as desk:
        said = await desk.ask(kind, payload, task_type=task, request_id="r")
        assert (said["type"], said["error"], said["result"]["error"]["code"]) == ("error", True, code)
        assert said["request_id"] == "r"
        assert said["error_msg"] == said["result"]["error"]["message"]
        assert (await desk.ask("ping", request_id="p"))["type"] == "pong"


async def test_a_broker_that_is_away_is_reported_and_the_connection_stays(gateway: GatewayEdge):
    async with gateway.connect() as desk:
        gateway.world.broker.stop()
        said = await desk.ask("gpu.job.submit", TEXT, task_type="echo", request_id="r")
        assert said["result"]["error"]["code"] == "unavailable"
        gateway.world.broker.start()
        again = await desk.ask("gpu.job.submit", TEXT, task_type="echo", request_id="r")
    assert again["payload"]["status"] == "queued"
