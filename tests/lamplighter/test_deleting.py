"""`assets`, `owners` and `keys` against a served edge: what they print, and how they leave."""

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from subprocess import CompletedProcess

import anyio
import pytest

from schemas.job import Status
from tests.support.served_edge import ServedEdge, serve_edge
from tests.support.wait import wait_for


@pytest.fixture
async def face(tmp_path: Path) -> AsyncIterator[ServedEdge]:
    async with serve_edge(tmp_path) as made:
        yield made


async def lamplighter(face: ServedEdge, who: str, *words: str) -> CompletedProcess[bytes]:
    argv = [sys.executable, "-m", "lamplighter", *words, "--url", face.url, "--key", face.texts[who]]
    return await anyio.run_process(argv, check=False, input=b"")


async def test_files_are_listed_and_deleted(face: ServedEdge):
    await face.world.announce_capabilities()
    free, held = await face.world.put("ann", b"free", "free.mp4"), await face.world.put("ann", b"held")
    await face.ann.post("/v1/jobs", json={"endpoint": "echo", "input": {"file": f"sha256:{held}"}})
    listed = await lamplighter(face, "ann", "assets")
    assert free in listed.stdout.decode()
    gone = await lamplighter(face, "ann", "assets", "delete", f"sha256:{free}")
    assert (gone.returncode, gone.stdout.decode().split()[:2]) == (0, [free, "Deleted;"])
    assert "gpu-1" in gone.stdout.decode()
    for digest in (free, held):
        refused = await lamplighter(face, "ann", "assets", "delete", digest)
        assert refused.returncode == 4
        assert len(refused.stderr.strip().splitlines()) == 1
    assert json.loads((await lamplighter(face, "ann", "assets", "--json")).stdout)["assets"][0]["sha256"] == held


async def test_an_owner_is_deleted_with_a_report(face: ServedEdge):
    await face.world.put("bob", b"film")
    await face.bob.put("/v1/jobs/one", json={"endpoint": "echo", "input": {"text": "hello"}})
    asked = await lamplighter(face, "admin", "owners", "delete", "bob")
    assert (asked.returncode, b"--yes" in asked.stderr) == (2, True)
    assert (await lamplighter(face, "bob", "owners", "delete", "ann", "--yes")).returncode == 4
    assert (await lamplighter(face, "admin", "owners", "delete", "admin", "--yes")).returncode == 4
    assert (await lamplighter(face, "admin", "owners", "show", "bob")).returncode == 4
    begun = await lamplighter(face, "admin", "owners", "delete", "bob", "--yes", "--no-wait", "--json")
    assert (begun.returncode, json.loads(begun.stdout)["state"]) == (0, "running")
    erasures = face.world.erasures(face.keys)
    done: list[CompletedProcess[bytes]] = []

    async def wait() -> None:
        done.append(await lamplighter(face, "admin", "owners", "delete", "bob", "--yes"))

    async def swept() -> bool:
        face.world.time.advance(seconds=30)
        await erasures.sweep()
        return bool(done)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await wait_for(swept, timeout_s=60)
    lines = [line.split() for line in done[0].stdout.decode().splitlines()]
    assert done[0].returncode == 0
    assert lines[0] == ["bob:", "done"]
    assert ["1", "job"] in lines
    assert ["1", "file", "(4", "B)"] in lines
    shown = json.loads((await lamplighter(face, "admin", "owners", "show", "bob", "--json")).stdout)
    assert (shown["state"], shown["erased"]["keys"], shown["erased"]["cancelled"]) == ("done", 1, 1)


async def test_keys_are_made_rotated_and_revoked(face: ServedEdge):
    words = ("keys", "create", "carl", "--name", "phone", "--language", "zh", "--days", "2")
    text = (await lamplighter(face, "admin", *words)).stdout.decode().strip()
    key_id = text.split("_")[1]
    made = {key["id"]: key for key in (await face.admin.get("/v1/keys")).json()["keys"]}[key_id]
    assert (made["owner"], made["name"], made["language"], made["used_at"]) == ("carl", "phone", "zh", None)
    assert made["expires_at"] is not None
    fresh = (await lamplighter(face, "admin", "keys", "rotate", key_id)).stdout.decode().strip()
    assert fresh.split("_")[1] == key_id
    for secret in (text, fresh):
        assert (await face.anyone.get("/v1/jobs", headers={"X-API-Key": secret})).status_code == 200
    last = (await lamplighter(face, "admin", "keys", "rotate", key_id, "--grace", "0")).stdout.decode().strip()
    statuses = [
        (await face.anyone.get("/v1/jobs", headers={"X-API-Key": secret})).status_code for secret in (text, fresh, last)
    ]
    assert statuses == [401, 401, 200]
    assert (await lamplighter(face, "admin", "keys", "revoke", key_id)).returncode == 0
    assert (await lamplighter(face, "admin", "keys", "rotate", key_id)).returncode == 4
    listed = (await lamplighter(face, "admin", "keys", "list")).stdout.decode()
    assert "LAST USED" in listed
    assert key_id not in listed


async def test_the_deletion_of_an_owner_over_http(face: ServedEdge):
    assert (await face.ann.delete("/v1/owners/bob")).json()["code"] == "forbidden"
    assert (await face.admin.delete("/v1/owners/a.b")).json()["code"] == "input_invalid"
    assert (await face.admin.delete("/v1/owners/admin")).json()["code"] == "conflict"
    job = (await face.ann.put("/v1/jobs/one", json={"endpoint": "echo", "input": {"text": "hello"}})).json()
    assert (await face.admin.delete("/v1/owners/ann")).status_code == 202
    refused = await face.ann.post("/v1/jobs", json={"endpoint": "echo", "input": {}})
    assert (refused.status_code, refused.json()["code"]) == (409, "owner_deleting")
    assert (await face.admin.post("/v1/keys", json={"owner": "ann"})).json()["code"] == "owner_deleting"
    assert (await face.ann.get(f"/v1/jobs/{job['id']}")).json()["status"] == Status.QUEUED
    told = (await face.admin.get("/v1/owners/ann/deletion")).json()
    assert set(told) == {
        *("owner", "asked_at", "by", "state", "erased", "waiting_for", "hosts_pending", "quiet_since", "finished_at")
    }
