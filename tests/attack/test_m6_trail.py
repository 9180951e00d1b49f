"""M6: wrong keys leave a line in the log and get slower; what is done to keys, hosts and owners leaves a trail."""

import re
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from edge.strangers import EVERY_S, FREE, Failures, StrangerLog
from schemas.access import Scope
from schemas.audit import BY_EDGE
from tests.contract.doors import FakeDoor
from tests.e2e.installation import Installation, until
from tests.edge.facades.gateway.desk import desk
from tests.edge.routes.conftest import Face, face, face_at
from tests.edge.store.served import open_client

__all__ = ["face"]

FIRST_KEY = re.compile(r"first admin key \(shown once\): (\S+)")
WRONG = "lamp_guess_0123456789abcdef"


async def test_three_hundred_wrong_keys_are_one_line_with_their_address(face: Face):
    with capture_logs() as logs:
        for _ in range(300):
            assert (await face.anyone.get("/v1/jobs", headers={"X-API-Key": WRONG})).status_code == 401
    lines = [line for line in logs if line["event"] == "authentication_failed"]
    assert [(line["client"], line["key_id"], line["log_level"]) for line in lines] == [
        ("127.0.0.1", "guess", "warning")
    ]
    assert WRONG not in str(logs)


async def test_every_door_counts_and_a_proxy_says_who_it_was(face: Face):
    """The address behind a proxy, where that is a trusted one."""
    with capture_logs() as logs:
        await face.anyone.get("/v1/jobs", headers={"X-API-Key": WRONG, "X-Forwarded-For": "192.0.2.1, 198.51.100.7"})
        async with desk(face.url, WRONG) as made:
            await made.closed()
    failed = [line["client"] for line in logs if line["event"] == "authentication_failed"]
    assert failed == ["198.51.100.7", "127.0.0.1"]


class Now:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


def test_an_address_that_fails_often_waits_and_others_do_not():
    now = Now()
    failures = Failures(now, pause_s=2.0)
    assert [failures.pause("192.0.2.1") for _ in range(FREE + 2)] == [0.0] * FREE + [2.0, 2.0]
    assert failures.pause("192.0.2.2") == 0.0
    assert [failures.pause(f"2001:db8::{number}") for number in range(FREE + 1)][-1] == 2.0, "a /64 is one client"
    now.at += EVERY_S
    assert failures.pause("192.0.2.1") == 0.0


def test_addresses_without_end_take_no_memory_without_end():
    now = Now()
    log, failures = StrangerLog(now), Failures(now)
    with capture_logs():
        for number in range(10_000):
            address = f"198.18.{number // 256}.{number % 256}"
            log.note("seen", address)
            failures.pause(address)
    assert len(log._noted) <= 4096
    assert len(failures._failed) <= 4096


async def test_the_pause_holds_for_strangers_and_not_behind_a_proxy(face: Face, monkeypatch: pytest.MonkeyPatch):
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("edge.auth.keys.sleep", sleep)
    for _ in range(FREE + 3):
        await face.anyone.get("/v1/jobs", headers={"X-API-Key": WRONG})
    assert slept == []
    for _ in range(FREE + 3):
        await face.anyone.get("/v1/jobs", headers={"X-API-Key": WRONG, "X-Forwarded-For": "198.51.100.7"})
    assert slept == [0.0] * FREE + [2.0] * 3
    await face.ann.get("/v1/jobs", headers={"X-Forwarded-For": "198.51.100.7"})
    assert len(slept) == FREE + 3, "a valid key does not wait"


async def test_what_is_done_to_keys_and_owners_is_kept(face: Face):
    made = (
        await face.admin.post("/v1/keys", json={"owner": "carl", "scopes": ["admin"], "name": "secret name"})
    ).json()
    await face.admin.post(f"/v1/keys/{made['id']}/rotate", json={})
    await face.admin.delete(f"/v1/keys/{made['id']}")
    await face.admin.delete("/v1/owners/bob")
    (admin,) = await face.keys.list("admin")
    trail = (await face.admin.get("/v1/audit")).json()["events"]
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
    assert len((await face.admin.get("/v1/audit?limit=2")).json()["events"]) == 2
    assert (await face.ann.get("/v1/audit")).status_code == 403


async def test_the_key_that_a_first_edge_makes_for_itself_is_kept(tmp_path: Path):
    made = Installation(tmp_path, "process", None)
    try:
        await made.server.start()
        await made.start_edge()

        async def shown() -> str | None:
            found = FIRST_KEY.search(made.edge.log.read_text())
            return found[1] if found else None

        key = await until(shown)
        async with open_client(made.url, headers={"X-API-Key": key}, timeout=20) as client:
            (event,) = (await client.get("/v1/audit")).json()["events"]
    finally:
        await made.close()
        made.give_back_ports()
    assert (event["action"], event["by"], event["scopes"]) == ("key_created", BY_EDGE, ["admin"])


async def test_hosts_that_come_and_go_are_kept(tmp_path: Path):
    async with face_at(tmp_path, FakeDoor()) as face:
        await face.admin.post("/v1/hosts", json={"id": "gpu-1"})
        await face.admin.delete("/v1/hosts/gpu-1")
        trail = (await face.admin.get("/v1/audit")).json()["events"]
    assert [(event["action"], event["subject"]) for event in trail] == [
        ("host_removed", "gpu-1"),
        ("host_added", "gpu-1"),
    ]
