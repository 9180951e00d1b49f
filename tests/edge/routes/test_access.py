"""Keys, scopes, health, endpoints, and problem documents."""

import anyio
import httpx2
import pytest
from litestar.connection import ASGIConnection

from bus.health import BrokerStatus
from edge.http.dependencies import read_client_address
from schemas import events as e
from schemas.credentials import Scope
from schemas.host import GpuReport
from schemas.job import AttemptUsage, Claim, Output
from schemas.version import VERSION
from tests.support.served_edge import ServedEdge

ECHO = {"endpoint": "echo", "input": {"text": "hello"}}
PROTECTED = [
    "/v1/jobs",
    "/v1/assets",
    "/v1/endpoints",
    "/v1/hosts",
    "/v1/keys",
    "/v1/events",
    "/metrics",
    "/schema/openapi.json",
]


@pytest.mark.parametrize(("peer", "address"), [(("192.0.2.1", 4711), "192.0.2.1"), (None, "")])
def test_a_client_has_the_address_of_its_peer(peer: tuple[str, int] | None, address: str):
    """Over a Unix socket, and once the peer has gone, there is none."""
    assert read_client_address(ASGIConnection({"type": "http", "client": peer})) == address


@pytest.mark.parametrize("path", PROTECTED)
async def test_nothing_is_shown_without_a_valid_key(edge: ServedEdge, path):
    secret = edge.texts["ann"]
    for headers in (
        {},
        {"Authorization": "Bearer nonsense"},
        {"Authorization": f"Basic {secret}"},
        {"X-API-Key": secret[:-1] + ("a" if secret[-1] != "a" else "b")},
    ):
        reply = await edge.anyone.get(path, headers=headers)
        assert (reply.status_code, reply.json()["code"]) == (401, "unauthorized"), headers
        assert reply.headers["www-authenticate"] == "Bearer"


async def test_both_headers_carry_a_key(edge: ServedEdge):
    for headers in ({"X-API-Key": edge.texts["ann"]}, {"Authorization": f"bearer {edge.texts['ann']}"}):
        assert (await edge.anyone.get("/v1/jobs", headers=headers)).status_code == 200


async def test_a_missing_scope_is_named(edge: ServedEdge):
    made = await edge.admin.post("/v1/keys", json={"owner": "ann", "scopes": ["jobs:read"]})
    reader = {"X-API-Key": made.json()["key"]}
    refused = await edge.anyone.post("/v1/jobs", json=ECHO, headers=reader)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert "jobs:write" in refused.json()["detail"]
    assert (await edge.anyone.get("/v1/jobs", headers=reader)).status_code == 200
    assert not await edge.world.bus.job_store.keys()


async def test_a_key_is_shown_once_and_a_revoked_one_is_refused(edge: ServedEdge):
    made = (await edge.admin.post("/v1/keys", json={"owner": "carl", "name": "phone"})).json()
    listed = (await edge.admin.get("/v1/keys")).json()["keys"]
    headers = {"X-API-Key": made["key"]}
    assert next(key for key in listed if key["id"] == made["id"])["key"] is None
    assert (await edge.anyone.get("/v1/jobs", headers=headers)).status_code == 200
    assert (await edge.admin.delete(f"/v1/keys/{made['id']}")).status_code == 204
    assert (await edge.anyone.get("/v1/jobs", headers=headers)).status_code == 401
    assert (await edge.admin.delete(f"/v1/keys/{made['id']}")).json()["code"] == "not_found"
    assert (await edge.ann.post("/v1/keys", json={"owner": "ann"})).status_code == 403


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "input_invalid"),
        ({"owner": "a.b"}, "input_invalid"),
        ({"owner": "a", "scopes": ["everything"]}, "input_invalid"),
        ({"owner": "a", "scopes": []}, "input_invalid"),
        ({"owner": "a", "more": 1}, "field_unknown"),
    ],
)
async def test_bad_keys_are_not_made(edge: ServedEdge, body, code):
    before = (await edge.admin.get("/v1/keys")).json()
    assert (await edge.admin.post("/v1/keys", json=body)).json()["code"] == code
    assert (await edge.admin.get("/v1/keys")).json() == before


async def test_health_needs_no_key_and_says_what_is_in_the_way(edge: ServedEdge):
    assert (await edge.anyone.get("/livez")).json() == {"status": "ok"}
    ready = await edge.anyone.get("/readyz")
    assert (ready.status_code, ready.json()["version"]) == (200, VERSION)
    assert (await edge.admin.get("/v1/hosts")).json()["version"] == VERSION
    edge.world.bus.health.cut()
    ready = await edge.anyone.get("/readyz")
    assert ready.status_code == 503
    assert "broker" in ready.json()["why"][0]


async def test_a_server_of_the_broker_that_is_ill_is_reported_and_in_nobodys_way(edge: ServedEdge, monkeypatch):
    async def limping() -> BrokerStatus:
        return BrokerStatus(0.1, is_durable=True, version="", degraded=("server n1 could not write: make room",))

    monkeypatch.setattr(edge.world.bus.health, "status", limping)
    ready = await edge.anyone.get("/readyz")
    assert (ready.status_code, ready.json()["why"]) == (200, [])
    assert ready.json()["degraded"] == ["server n1 could not write: make room"]
    assert ready.json()["ailing"] == ready.json()["degraded"], "the name of the last release"


async def test_what_may_be_tried_later_says_when(edge: ServedEdge):
    edge.world.bus.health.cut()
    edge.world.time.advance(seconds=5)
    reply = await edge.ann.post("/v1/jobs", json=ECHO)
    assert (reply.status_code, reply.json()["code"]) == (503, "unavailable")
    assert int(reply.headers["retry-after"]) > 0


async def test_what_the_settings_do_not_allow_is_not_to_be_tried_later(edge: ServedEdge):
    reply = await edge.admin.post("/v1/hosts", json={"id": "gpu-7"})
    assert (reply.status_code, reply.json()["code"]) == (501, "not_set_up")
    assert "retry-after" not in reply.headers


async def test_what_answers_get_answers_head(edge: ServedEdge):
    await edge.ann.put("/v1/jobs/mine", json=ECHO)
    for path in ("/livez", "/readyz", "/v1/jobs", "/v1/jobs/mine", "/v1/jobs/mine/history", "/v1/jobs/mine/logs"):
        reply = await edge.ann.head(path)
        assert (reply.status_code, reply.content) == (200, b""), path
    assert (await edge.ann.head("/v1/jobs/none")).status_code == 404


@pytest.mark.parametrize(
    ("path", "key", "status"),
    [("/v1/jobs", "ann", 413), ("/v1/jobs", "none", 401), ("/v1/nothing", "ann", 404), ("/v1/keys", "ann", 403)],
)
async def test_who_sends_all_before_reading_still_hears_why_it_was_refused(edge: ServedEdge, path, key, status):
    """Send a body larger than the socket's buffers, with `Connection: close`."""
    body = b"x" * (16 << 20)
    head = f"POST {path} HTTP/1.1\r\nHost: edge\r\nX-API-Key: {edge.texts.get(key, key)}\r\n"
    head += f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    url = httpx2.URL(edge.url)
    async with await anyio.connect_tcp(url.host, url.port) as stream:
        with anyio.fail_after(20):
            await stream.send(head.encode() + body)
            answer = await stream.receive()
    assert answer.split(b" ", 2)[1] == str(status).encode()


async def test_what_can_run_is_reported_with_its_schema(edge: ServedEdge):
    await edge.world.announce_capabilities(slots=2)
    endpoints = (await edge.ann.get("/v1/endpoints")).json()["endpoints"]
    one = (await edge.ann.get("/v1/endpoints/echo")).json()
    assert [(e["name"], e["pool"], e["hosts"]) for e in endpoints] == [("echo", "echo", ["gpu-1"])]
    assert one["input"]["properties"]["file"]["format"] == "asset"
    assert one["run_time"] is None
    assert (await edge.ann.get("/v1/endpoints/nowhere")).json()["code"] == "endpoint_unknown"


async def test_an_endpoint_reports_how_long_its_runs_take(edge: ServedEdge):
    world = edge.world
    await world.announce_capabilities()
    for seconds in (10.0, 20.0, 30.0):
        job = await world.submit()
        await world.write_event(job.key, e.Started(Claim("gpu-1", "i1", 1, None)))
        await world.write_event(job.key, e.Succeeded(Output(), AttemptUsage(run_s=seconds)))
    await world.wait_until_indexed()
    (listed,) = (await edge.ann.get("/v1/endpoints")).json()["endpoints"]
    assert listed["run_time"] == {"p50_s": 20.0, "p90_s": 28.0, "samples": 3}
    assert (await edge.ann.get("/v1/endpoints/echo")).json()["run_time"] == listed["run_time"]


async def test_hosts_are_reported_while_on_and_while_off(edge: ServedEdge):
    await edge.world.announce_capabilities()
    assert [(h["id"], h["state"]) for h in (await edge.ann.get("/v1/hosts")).json()["hosts"]] == [("gpu-1", "off")]
    gpu, assigned = GpuReport("GPU-1", "A GPU", memory_total_mb=100), "1 of 4 (CUDA_VISIBLE_DEVICES=2)"
    await edge.world.send_heartbeat(gpus=(gpu,), gpus_assigned=assigned, secrets_on_disk=True)
    host = (await edge.ann.get("/v1/hosts/gpu-1")).json()
    assert (host["state"], host["incarnation"], host["gpus"][0]["uuid"]) == ("online", "i1", "GPU-1")
    assert (host["gpus_assigned"], host["secrets_on_disk"]) == (assigned, True)
    assert set(host) == {
        *("id", "state", "since", "incarnation", "wake_median_s", "endpoints", "gpus", "jobs", "hold", "history"),
        *("busy", "cannot", "unschedulable", "engine", "engine_away", "run_as", "waits", "injection", "warm"),
        *(
            "kept_on",
            "version",
            "declared",
            "images",
            "volumes",
            "maintenance",
            "labels",
            "unmet",
            "isolation",
            "runtimes",
        ),
        *("gpus_assigned", "secrets_on_disk"),
    }
    assert (await edge.ann.get("/v1/hosts/none")).status_code == 404


async def test_an_owners_override_is_stored_and_shown(edge: ServedEdge):
    held = await edge.admin.post("/v1/hosts/gpu-9/power", json={"want": "on", "until": "2030-01-01T00:00:00Z"})
    assert (held.status_code, held.json()["hold"]) == (202, {"want": "on", "until": "2030-01-01T00:00:00Z"})
    assert (await edge.ann.get("/v1/hosts/gpu-9")).json()["state"] == "off"
    freed = await edge.admin.post("/v1/hosts/gpu-9/power", json={"want": "auto"})
    assert freed.json()["hold"] is None


@pytest.mark.parametrize(
    ("host", "body", "code"),
    [
        ("gpu-1", {"want": "on"}, "not_found"),
        ("gpu-9", {"want": "perhaps"}, "input_invalid"),
        ("gpu-9", {"want": "on", "more": 1}, "field_unknown"),
        ("gpu-9", {"want": "on", "until": "tomorrow"}, "input_invalid"),
    ],
)
async def test_overrides_that_are_refused(edge: ServedEdge, host, body, code):
    assert (await edge.admin.post(f"/v1/hosts/{host}/power", json=body)).json()["code"] == code
    assert (await edge.ann.post(f"/v1/hosts/{host}/power", json=body)).json()["code"] == "forbidden"


async def test_metrics_count_jobs_by_status(edge: ServedEdge):
    await edge.ann.post("/v1/jobs", json=ECHO)
    await edge.world.wait_until_indexed()
    text = (await edge.ann.get("/metrics")).text
    assert 'lamplighter_jobs{endpoint="echo",status="queued"} 1.0' in text
    assert "lamplighter_broker_store_used_ratio" in text


async def test_openapi_names_every_route_and_the_body_of_a_submit(edge: ServedEdge):
    document = (await edge.ann.get("/schema/openapi.json")).json()
    paths = {
        *("/v1/jobs", "/v1/jobs/{job_id}", "/v1/jobs/{job_id}/history", "/v1/jobs/{job_id}/cancel"),
        *("/v1/jobs/{job_id}/retry", "/v1/jobs/{job_id}/events", "/v1/events", "/v1/jobs/{job_id}/logs"),
        *("/v1/jobs/{job_id}/files/{name}", "/v1/assets", "/v1/assets/{sha256}", "/v1/assets/check"),
        *(
            "/v1/endpoints",
            "/v1/endpoints/{name}",
            "/v1/hosts",
            "/v1/hosts/{host}",
            "/v1/hosts/{host}/power",
            "/v1/hosts/{host}/maintenance",
            "/v1/endpoints/{name}/pause",
            "/v1/endpoints/{name}/resume",
            "/v1/keys",
            "/v1/keys/{key_id}",
        ),
        *("/v1/uploads", "/v1/uploads/{upload_id}", "/v1/tokens"),
        *("/v1/jobs/{job_id}/deliveries", "/v1/deliveries", "/v1/deliveries/{delivery_id}/replay"),
        *("/v1/webhooks", "/v1/webhooks/{webhook_id}", "/v1/webhooks/{webhook_id}/test"),
        *("/v1/webhooks/secret", "/v1/batches", "/v1/usage", "/v1/keys/{key_id}/rotate"),
        *("/v1/owners", "/v1/owners/{owner_id}", "/v1/owners/{owner_id}/deletion", "/v1/audit"),
        *("/v1/notifications", "/v1/notifications/test"),
        *("/v1/jobs/actions", "/v1/jobs/actions/{action_id}", "/v1/hosts/{host}/samples"),
        *("/v1/session", "/v1/session/tickets", "/v1/relays", "/v1/hosts/{host}/leave"),
        *("/v1/host-tokens", "/v1/host-tokens/join", "/v1/host-tokens/{token_id}"),
        *("/v1/secrets", "/v1/secrets/{name}", "/v1/jobs/{job_id}/secrets", "/v1/secret-key/rotate"),
        *("/livez", "/readyz", "/metrics"),
    }
    assert set(document["paths"]) == paths
    body = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
    assert body["application/json"]["schema"] == {"$ref": "#/components/schemas/Submission"}
    assert document["components"]["schemas"]["Submission"]["required"] == ["endpoint", "input"]
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert "application/problem+json" in operation["responses"]["500"]["content"], (path, method)
    assert {"200", "202"} <= set(document["paths"]["/v1/jobs/{job_id}"]["put"]["responses"])
    whole = document["paths"]["/v1/assets/{sha256}"]["get"]["responses"]["206"]["content"]
    assert "application/octet-stream" in whole


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("PATCH", "/v1/jobs", 405)])
async def test_what_is_not_there_is_a_problem_too(edge: ServedEdge, method, path, status):
    reply: httpx2.Response = await edge.ann.request(method, path)
    assert (reply.status_code, reply.json()["status"], reply.json()["code"]) == (status, status, "not_found")
    assert reply.headers["content-type"] == "application/problem+json"


def test_scopes_are_those_of_the_protocol():
    named = "jobs:read jobs:write assets:read assets:write hosts:read power relay runner admin"
    assert {scope.value for scope in Scope} == set(named.split())


@pytest.mark.parametrize(
    ("method", "path", "status", "what_to_do"),
    [
        ("GET", "/v1/nothing", 404, "openapi.json for all paths"),
        ("PUT", "/v1/jobs/a%2Fb", 404, "openapi.json for all paths"),
        ("PATCH", "/v1/jobs", 405, "the header Allow"),
        ("POST", "/v1/batches", 413, "split large batches"),
    ],
)
async def test_what_no_route_takes_is_refused_with_what_to_do(
    edge: ServedEdge, method: str, path: str, status: int, what_to_do: str
):
    reply = await edge.ann.request(method, path, content=b" " * (2 << 20) if status == 413 else b"{}")
    assert reply.status_code == status
    assert what_to_do in reply.json()["detail"]


async def test_a_key_alone_in_the_header_is_taken_and_a_key_with_a_word_after_it_is_not(edge: ServedEdge):
    secret = edge.texts["ann"]
    for value, status in ((secret, 200), (f"{secret} more", 401), ("nonsense", 401)):
        assert (await edge.anyone.get("/v1/jobs", headers={"Authorization": value})).status_code == status, value


async def test_a_runners_key_does_only_what_runners_do(edge: ServedEdge):
    made = await edge.admin.post("/v1/keys", json={"owner": "ann", "scopes": ["runner"]})
    runner = {"X-API-Key": made.json()["key"]}
    assert (await edge.anyone.post("/v1/jobs", json=ECHO, headers=runner)).status_code == 403
    assert (await edge.anyone.get("/v1/jobs", headers=runner)).status_code == 403
