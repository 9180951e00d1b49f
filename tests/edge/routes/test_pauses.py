"""Pausing an endpoint and the maintenance of a host over HTTP."""

import pytest

from tests.support.served_edge import ServedEdge


async def list_audit_events(edge: ServedEdge) -> list[tuple[str, str]]:
    events = (await edge.admin.get("/v1/audit")).json()["events"]
    return [(event["action"], event["subject"]) for event in events]


async def test_a_paused_endpoint_takes_jobs_and_says_why_they_wait(edge: ServedEdge):
    await edge.world.announce_capabilities()
    await edge.world.send_heartbeat()
    paused = await edge.admin.post("/v1/endpoints/echo/pause")
    assert paused.status_code == 202
    again = await edge.admin.post("/v1/endpoints/echo/pause")
    assert again.json()["paused"] == paused.json()["paused"]
    assert paused.json()["paused"]["by"] == "admin"
    assert (await edge.ann.get("/v1/endpoints/echo")).json()["paused"] == paused.json()["paused"]
    sent = await edge.ann.post("/v1/jobs", json={"endpoint": "echo", "input": {"text": "hello"}})
    job = (await edge.ann.get(f"/v1/jobs/{sent.json()['id']}")).json()
    assert (sent.status_code, job["reason"]) == (202, "endpoint_paused")
    assert job["message"].startswith("admin paused this kind of job at 2026-11-21 ")

    resumed = await edge.admin.post("/v1/endpoints/echo/resume")
    assert (resumed.status_code, resumed.json()["paused"]) == (202, None)
    assert (await edge.admin.post("/v1/endpoints/echo/resume")).status_code == 202
    assert (await edge.ann.get(f"/v1/jobs/{job['id']}")).json()["reason"] == "behind"
    assert await list_audit_events(edge) == [("endpoint_resumed", "echo"), ("endpoint_paused", "echo")]


async def test_a_host_in_maintenance_is_shown_and_is_the_reason(edge: ServedEdge):
    await edge.world.announce_capabilities()
    await edge.world.send_heartbeat()
    started = await edge.admin.post("/v1/hosts/gpu-1/maintenance")
    assert (started.status_code, started.json()["maintenance"]["by"]) == (202, "admin")
    assert (await edge.admin.post("/v1/hosts/gpu-1/maintenance")).json()["maintenance"] == started.json()["maintenance"]
    (shown,) = (host for host in (await edge.ann.get("/v1/hosts")).json()["hosts"] if host["id"] == "gpu-1")
    assert shown["maintenance"] == started.json()["maintenance"]
    sent = await edge.ann.post("/v1/jobs", json={"endpoint": "echo", "input": {"text": "hello"}})
    job = (await edge.ann.get(f"/v1/jobs/{sent.json()['id']}")).json()
    assert job["reason"] == "host_in_maintenance"

    ended = await edge.admin.delete("/v1/hosts/gpu-1/maintenance")
    assert (ended.status_code, ended.json()["maintenance"]) == (202, None)
    assert (await edge.admin.delete("/v1/hosts/gpu-1/maintenance")).status_code == 202
    assert await list_audit_events(edge) == [("host_maintenance_ended", "gpu-1"), ("host_maintenance_started", "gpu-1")]


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("POST", "/v1/endpoints/none/pause", "endpoint_unknown"),
        ("POST", "/v1/endpoints/none/resume", "endpoint_unknown"),
        ("POST", "/v1/hosts/none/maintenance", "not_found"),
        ("DELETE", "/v1/hosts/none/maintenance", "not_found"),
    ],
)
async def test_what_is_not_known_cannot_be_paused(edge: ServedEdge, method: str, path: str, code: str):
    assert (await edge.admin.request(method, path)).json()["code"] == code
    assert (await edge.ann.request(method, path)).json()["code"] == "forbidden"
    assert await list_audit_events(edge) == []
