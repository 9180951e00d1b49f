"""M6: wrong keys leave a line in the log and get slower; what is done to keys, hosts and owners leaves a trail."""

import re
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from edge.core.clients import FREE_FAILURES_LIMIT, WINDOW_S, AuthFailureThrottle, ThrottledClientLog
from schemas.credentials import Scope
from schemas.installation import BY_EDGE
from tests.edge.routes.conftest import edge
from tests.support.gateway_client import connect_gateway
from tests.support.host_access import FakeHostAccess
from tests.support.http_server import open_client
from tests.support.installation import Installation
from tests.support.served_edge import ServedEdge, serve_edge
from tests.support.wait import wait_for

__all__ = ["edge"]

FIRST_KEY = re.compile(r"first admin key \(shown once\): (\S+)")
WRONG = "lamp_guess_0123456789abcdef"


async def test_three_hundred_wrong_keys_are_one_line_with_their_address(edge: ServedEdge):
    with capture_logs() as logs:
        for _ in range(300):
            assert (await edge.anyone.get("/v1/jobs", headers={"X-API-Key": WRONG})).status_code == 401
    lines = [line for line in logs if line["event"] == "authentication_failed"]
    assert [(line["client"], line["key_id"], line["log_level"]) for line in lines] == [
        ("127.0.0.1", "guess", "warning")
    ]
    assert WRONG not in str(logs)


async def test_every_way_in_counts_and_a_proxy_names_the_client(edge: ServedEdge):
    """The address of the client behind a trusted proxy."""
    with capture_logs() as logs:
        await edge.anyone.get("/v1/jobs", headers={"X-API-Key": WRONG, "X-Forwarded-For": "192.0.2.1, 198.51.100.7"})
        async with connect_gateway(edge.url, WRONG) as made:
            await made.wait_until_closed()
    failed = [line["client"] for line in logs if line["event"] == "authentication_failed"]
    assert failed == ["198.51.100.7", "127.0.0.1"]


class MovableNow:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


def test_an_address_that_fails_often_waits_and_others_do_not():
    now = MovableNow()
    failures = AuthFailureThrottle(now, delay_s=2.0)
    assert [failures.count_failure("192.0.2.1") for _ in range(FREE_FAILURES_LIMIT + 2)] == [
        0.0
    ] * FREE_FAILURES_LIMIT + [2.0, 2.0]
    assert failures.count_failure("192.0.2.2") == 0.0
    assert [failures.count_failure(f"2001:db8::{number}") for number in range(FREE_FAILURES_LIMIT + 1)][-1] == 2.0, (
        "a /64 is one client"
    )
    now.at += WINDOW_S
    assert failures.count_failure("192.0.2.1") == 0.0


def test_addresses_without_end_take_no_memory_without_end():
    now = MovableNow()
    log, failures = ThrottledClientLog(now), AuthFailureThrottle(now)
    with capture_logs():
        for number in range(10_000):
            address = f"198.18.{number // 256}.{number % 256}"
            log.log("seen", address)
            failures.count_failure(address)
    assert len(log._logged) <= 4096
    assert len(failures._failures) <= 4096


async def test_the_pause_holds_for_strangers_and_not_behind_a_proxy(edge: ServedEdge, monkeypatch: pytest.MonkeyPatch):
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("edge.http.auth.sleep", sleep)
    for _ in range(FREE_FAILURES_LIMIT + 3):
        await edge.anyone.get("/v1/jobs", headers={"X-API-Key": WRONG})
    assert slept == []
    for _ in range(FREE_FAILURES_LIMIT + 3):
        await edge.anyone.get("/v1/jobs", headers={"X-API-Key": WRONG, "X-Forwarded-For": "198.51.100.7"})
    assert slept == [0.0] * FREE_FAILURES_LIMIT + [2.0] * 3
    await edge.ann.get("/v1/jobs", headers={"X-Forwarded-For": "198.51.100.7"})
    assert len(slept) == FREE_FAILURES_LIMIT + 3, "a valid key does not wait"


async def test_what_is_done_to_keys_and_owners_is_kept(edge: ServedEdge):
    made = (
        await edge.admin.post("/v1/keys", json={"owner": "carl", "scopes": ["admin"], "name": "secret name"})
    ).json()
    await edge.admin.post(f"/v1/keys/{made['id']}/rotate", json={})
    await edge.admin.delete(f"/v1/keys/{made['id']}")
    await edge.admin.delete("/v1/owners/bob")
    (admin,) = await edge.keys.list("admin")
    trail = (await edge.admin.get("/v1/audit")).json()["events"]
    assert [(event["action"], event["subject"]) for event in trail] == [
        ("owner_deleted", "bob"),
        ("key_revoked", made["id"]),
        ("key_rotated", made["id"]),
        ("key_created", made["id"]),
    ]
    assert {event["by"] for event in trail} == {admin.id}
    assert {event["client"] for event in trail} == {"127.0.0.1"}
    assert (trail[-1]["owner"], trail[-1]["scopes"]) == ("carl", [Scope.ADMIN])
    assert "secret name" not in str(trail)
    assert made["key"].rpartition("_")[2] not in str(trail)
    assert len((await edge.admin.get("/v1/audit?limit=2")).json()["events"]) == 2
    assert (await edge.ann.get("/v1/audit")).status_code == 403


async def test_the_key_that_a_first_edge_makes_for_itself_is_kept(tmp_path: Path):
    made = Installation(tmp_path, "process", None)
    try:
        await made.server.start()
        await made.start_edge()

        async def shown() -> str | None:
            found = FIRST_KEY.search(made.edge.log.read_text())
            return found[1] if found else None

        key = await wait_for(shown)
        async with open_client(made.url, headers={"X-API-Key": key}, timeout=20) as client:
            (event,) = (await client.get("/v1/audit?action=key_created")).json()["events"]
            (settings,) = (await client.get("/v1/audit?action=settings_changed")).json()["events"]
    finally:
        await made.close()
        made.release_ports()
    assert (event["action"], event["by"], event["scopes"]) == ("key_created", BY_EDGE, ["admin"])
    assert settings["by"] == BY_EDGE
    assert settings["details"]["broker.password"] == '"" -> "***"'


async def test_hosts_that_come_and_go_are_kept(tmp_path: Path):
    async with serve_edge(tmp_path, FakeHostAccess()) as edge:
        await edge.admin.post("/v1/hosts", json={"id": "gpu-1"})
        await edge.admin.delete("/v1/hosts/gpu-1")
        trail = (await edge.admin.get("/v1/audit")).json()["events"]
    assert [(event["action"], event["subject"]) for event in trail] == [
        ("host_removed", "gpu-1"),
        ("host_added", "gpu-1"),
    ]


async def test_what_an_administrator_does_to_the_jobs_of_others_is_kept(edge: ServedEdge):
    for job_id in ("one", "two", "own"):
        await edge.ann.put(f"/v1/jobs/{job_id}", json={"endpoint": "echo", "input": {"text": "hello"}})
    assert (await edge.admin.post("/v1/jobs/one/cancel?owner=ann")).status_code == 202
    assert (await edge.admin.post("/v1/jobs/one/retry?owner=ann")).status_code == 202
    assert (await edge.ann.post("/v1/jobs/own/cancel")).status_code == 202
    assert (await edge.ann.post("/v1/jobs/own/retry")).status_code == 202
    assert (await edge.admin.post("/v2/echo/cancel/two?owner=ann")).status_code == 200
    assert (await edge.admin.delete("/v1/jobs/two?owner=ann")).status_code == 204
    async with connect_gateway(edge.url, edge.texts["ann"]) as made:
        uploaded = (await edge.ann.post("/v1/assets", content=b"bytes")).json()
        await made.ask("gpu.job.submit", {"sha256": uploaded["sha256"]}, task_type="delete_asset")
    page = (await edge.admin.get("/v1/audit?owner=ann")).json()["events"]
    assert [(event["action"], event["subject"]) for event in page] == [
        ("asset_deleted", uploaded["sha256"]),
        ("job_deleted", "two"),
        ("job_cancelled", "two"),
        ("job_retried", "one"),
        ("job_cancelled", "one"),
    ]


async def test_power_bulk_actions_and_files_are_kept_with_their_details(edge: ServedEdge):
    await edge.admin.post("/v1/hosts/gpu-9/power", json={"want": "off"})
    action = (await edge.ann.post("/v1/jobs/actions", json={"action": "cancel", "filter": {}})).json()
    uploaded = (await edge.ann.post("/v1/assets", content=b"other bytes")).json()
    assert (await edge.ann.delete(f"/v1/assets/{uploaded['sha256']}")).status_code == 202
    page = (await edge.admin.get("/v1/audit?limit=2")).json()
    older = (await edge.admin.get(f"/v1/audit?limit=2&cursor={page['next_cursor']}")).json()
    events = page["events"] + older["events"]
    assert [(event["action"], event["subject"], event.get("details")) for event in events] == [
        ("asset_deleted", uploaded["sha256"], None),
        ("job_action_started", action["id"], {"action": "cancel", "total": "0", "conditions": ""}),
        ("host_power_set", "gpu-9", {"want": "off"}),
    ]
    assert older["next_cursor"] is None
    assert len({event["id"] for event in events}) == 3
