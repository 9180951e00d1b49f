"""Requests that clients may not make, against a real edge: the documented error, and nothing is written."""

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from msgspec import Struct

from edge.owners.api_keys import CACHE_TTL_S
from lamplighter import AsyncClient
from schemas.credentials import Scope
from tests.support.installation import RunningInstallation, run_new_installation
from tests.support.wait import wait_for

LARGEST = 1_000_000  # limit of an asset's size in this installation
FILE = b"some bytes of ann's"
SHA = hashlib.sha256(FILE).hexdigest()
OTHER = "0" * 64
TRICKS = ("..", "../job", "a/b", "a.b", "a*", "a>", ">", " ", "a b", "é", "a\n", "%00", "x" * 65)


class RefusalStage(Struct, frozen=True):
    """Ann has a job (`mine`) and an asset; `bob` is another owner; `reader` has ann's key for reading jobs only."""

    running: RunningInstallation
    ann: httpx2.AsyncClient
    bob: httpx2.AsyncClient
    reader: httpx2.AsyncClient
    nobody: httpx2.AsyncClient

    async def written(self) -> Any:
        """Return all that requests write: records, messages, references, tombstones, and files of the store."""
        bus, data = self.running.bus, self.running.installation.folder / "edge"
        keys = await bus.job_store.keys()
        return (
            {key: await bus.job_store.history(key) for key in keys},
            await bus.job_queue.list_pending(),
            {digest: row.value.name for digest, row in (await bus.asset_references.rows()).items()},
            set(await bus.tombstones.rows()),
            {path.relative_to(data) for path in (data / "assets").rglob("*") if path.is_file()},
        )


def client(running: RunningInstallation, key: str | None) -> httpx2.AsyncClient:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx2.AsyncClient(base_url=running.installation.url, headers=headers, timeout=30)


async def new_key(running: RunningInstallation, owner: str, *scopes: Scope) -> dict[str, Any]:
    """Create a key over HTTP with the admin key."""
    reply = await running.admin._http.post(
        "/v1/keys", json={"owner": owner, "scopes": [*scopes]} if scopes else {"owner": owner}
    )
    made: dict[str, Any] = reply.raise_for_status().json()
    return made


@pytest.fixture(scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory, anyio_backend: object) -> AsyncIterator[RefusalStage]:
    """Run an edge without a runner: only requests change anything."""
    folder = tmp_path_factory.mktemp("refusals")
    async with run_new_installation(folder, "process", None, LAMPLIGHTER_MAX_ASSET_BYTES=str(LARGEST)) as running:
        keys = [
            (await new_key(running, "ann"))["key"],
            (await new_key(running, "bob"))["key"],
            (await new_key(running, "ann", Scope.JOBS_READ))["key"],
            None,
        ]
        clients = [client(running, key) for key in keys]
        (await clients[0].put(f"/v1/assets/{SHA}", content=FILE)).raise_for_status()
        body = {"endpoint": "echo", "input": {"file": f"sha256:{SHA}"}}
        (await clients[0].put("/v1/jobs/mine", json=body)).raise_for_status()
        yield RefusalStage(running, *clients)
        for one in clients:
            await one.aclose()


class RefusalCase(Struct, frozen=True):
    """A request by `who`, and the error it must get."""

    method: str
    path: str
    status: int
    code: str
    given: Mapping[str, Any] = {}
    who: str = "ann"


def job(**fields: Any) -> dict[str, Any]:
    return {"json": {"endpoint": "echo", "input": {}} | fields}


def form(described: object, content: bytes = b"in a form", name: str = "x.bin") -> dict[str, Any]:
    """Build a multipart submit."""
    text = described if isinstance(described, str) else json.dumps(described)
    return {"data": {"job": text}, "files": {"file": (name, content)}}


HUGE = b'{"endpoint":"echo","input":{"text":"' + b"x" * 10_000_000 + b'"}}'
JSON = {"Content-Type": "application/json"}
DEEP = b'{"endpoint":"echo","input":' + b"[" * 100_000 + b"]" * 100_000 + b"}"

BODIES = {
    "an unknown field": RefusalCase("POST", "/v1/jobs", 400, "field_unknown", job(prio="high")),
    "an unknown field further in": RefusalCase("POST", "/v1/jobs", 400, "field_unknown", job(policy={"timeout": 1})),
    "an unknown field in a form": RefusalCase(
        "POST", "/v1/jobs", 400, "field_unknown", form({"endpoint": "echo", "x": 1})
    ),
    "an unknown endpoint in a form": RefusalCase(
        "POST", "/v1/jobs", 404, "endpoint_unknown", form({"endpoint": "nothing"})
    ),
    "an unknown input in a form": RefusalCase(
        "POST", "/v1/jobs", 422, "input_invalid", form({"endpoint": "echo", "input": {"sekonds": 1}})
    ),
    "an unknown input": RefusalCase("POST", "/v1/jobs", 422, "input_invalid", job(input={"sekonds": 1})),
    "an input of a wrong type": RefusalCase("POST", "/v1/jobs", 422, "input_invalid", job(input={"seconds": "long"})),
    "an input out of its range": RefusalCase("POST", "/v1/jobs", 422, "input_invalid", job(input={"exit": 256})),
    "a list for an input": RefusalCase("POST", "/v1/jobs", 422, "input_invalid", job(input=[])),
    "a number for an endpoint": RefusalCase("POST", "/v1/jobs", 422, "input_invalid", job(endpoint=7)),
    "a path for an endpoint": RefusalCase("POST", "/v1/jobs", 422, "input_invalid", job(endpoint="../echo")),
    "no endpoint": RefusalCase("POST", "/v1/jobs", 422, "input_invalid", {"json": {"input": {}}}),
    "an unknown endpoint": RefusalCase("POST", "/v1/jobs", 404, "endpoint_unknown", job(endpoint="nothing")),
    "an unknown priority": RefusalCase("POST", "/v1/jobs", 422, "input_invalid", job(priority="now")),
    "a time without a zone": RefusalCase(
        "POST", "/v1/jobs", 422, "input_invalid", job(not_before="2030-01-01T00:00:00")
    ),
    "a deadline that is over": RefusalCase(
        "POST", "/v1/jobs", 422, "input_invalid", job(deadline="2020-01-01T00:00:00Z")
    ),
    "no time at all": RefusalCase("POST", "/v1/jobs", 422, "input_invalid", job(policy={"execution_timeout_s": 0})),
    "endless time": RefusalCase("POST", "/v1/jobs", 422, "input_invalid", job(policy={"execution_timeout_s": 1e300})),
    "an input over 64 KiB": RefusalCase("POST", "/v1/jobs", 422, "input_invalid", job(input={"text": "x" * 70_000})),
    "10 MB of JSON": RefusalCase("POST", "/v1/jobs", 413, "body_too_large", {"content": HUGE, "headers": JSON}),
    "10 MB of JSON under an id": RefusalCase(
        "PUT", "/v1/jobs/huge", 413, "body_too_large", {"content": HUGE, "headers": JSON}
    ),
    "10 MB of JSON in a form": RefusalCase("POST", "/v1/jobs", 413, "body_too_large", form(HUGE.decode())),
    "10 MB of JSON for a key": RefusalCase(
        "POST", "/v1/keys", 413, "body_too_large", {"content": HUGE, "headers": JSON}, "admin"
    ),
    "no JSON": RefusalCase("POST", "/v1/jobs", 400, "body_malformed", {"content": b"{", "headers": JSON}),
    "no body": RefusalCase("POST", "/v1/jobs", 400, "body_malformed"),
    "a list": RefusalCase("POST", "/v1/jobs", 400, "body_malformed", {"json": []}),
    "no UTF-8": RefusalCase(
        "POST", "/v1/jobs", 400, "body_malformed", {"content": b'{"endpoint":"\xff"}', "headers": JSON}
    ),
    "half a surrogate": RefusalCase(
        "POST", "/v1/jobs", 400, "body_malformed", {"content": b'{"endpoint":"\\ud800"}', "headers": JSON}
    ),
    "depth": RefusalCase("POST", "/v1/jobs", 400, "body_malformed", {"content": DEEP, "headers": JSON}),
    "a form without a job": RefusalCase("POST", "/v1/jobs", 400, "body_malformed", {"files": {"file": ("x", b"y")}}),
    "half a form": RefusalCase(
        "POST",
        "/v1/jobs",
        400,
        "body_malformed",
        {"content": b"--b\r\n", "headers": {"Content-Type": "multipart/form-data"}},
    ),
}
FILES = {
    "a wrong digest": RefusalCase("PUT", f"/v1/assets/{OTHER}", 422, "digest_mismatch", {"content": b"not that"}),
    "an asset too large": RefusalCase(
        "PUT", f"/v1/assets/{OTHER}", 413, "body_too_large", {"content": b"x" * (LARGEST + 1)}
    ),
    "an asset too large, unnamed": RefusalCase(
        "POST", "/v1/assets", 413, "body_too_large", {"content": b"x" * (LARGEST + 1)}
    ),
    "no digest": RefusalCase("PUT", "/v1/assets/abc", 422, "input_invalid", {"content": b"x"}),
    "a path for a digest": RefusalCase("PUT", "/v1/assets/..%2Fabc", 404, "not_found", {"content": b"x"}),
    "a path for an output": RefusalCase("GET", "/v1/jobs/mine/files/..%2F..%2Fetc%2Fpasswd", 404, "not_found"),
    "an asset that is not there": RefusalCase(
        "POST", "/v1/jobs", 422, "asset_missing", job(input={"file": f"sha256:{OTHER}"})
    ),
    "a path for an asset": RefusalCase(
        "POST", "/v1/jobs", 422, "input_invalid", job(input={"file": "../../etc/passwd"})
    ),
    "a file URL": RefusalCase("POST", "/v1/jobs", 422, "url_refused", job(input={"file": "file:///etc/passwd"})),
    "an asset in use": RefusalCase("DELETE", f"/v1/assets/{SHA}", 409, "asset_in_use"),
    "no digests": RefusalCase("POST", "/v1/assets/check", 422, "input_invalid", {"json": {"digests": ["x"]}}),
}
STRANGERS = {
    "another's job": RefusalCase("GET", "/v1/jobs/mine", 404, "not_found", who="bob"),
    "another's history": RefusalCase("GET", "/v1/jobs/mine/history", 404, "not_found", who="bob"),
    "another's events": RefusalCase("GET", "/v1/jobs/mine/events", 404, "not_found", who="bob"),
    "another's log": RefusalCase("GET", "/v1/jobs/mine/logs", 404, "not_found", who="bob"),
    "another's output": RefusalCase("GET", "/v1/jobs/mine/files/x", 404, "not_found", who="bob"),
    "another's job to cancel": RefusalCase("POST", "/v1/jobs/mine/cancel", 404, "not_found", who="bob"),
    "another's job to retry": RefusalCase("POST", "/v1/jobs/mine/retry", 404, "not_found", who="bob"),
    "another's job to delete": RefusalCase("DELETE", "/v1/jobs/mine", 404, "not_found", who="bob"),
    "another's asset": RefusalCase("GET", f"/v1/assets/{SHA}", 404, "not_found", who="bob"),
    "another's asset to delete": RefusalCase("DELETE", f"/v1/assets/{SHA}", 404, "not_found", who="bob"),
    "another's asset as an input": RefusalCase(
        "POST", "/v1/jobs", 422, "asset_missing", job(input={"file": f"sha256:{SHA}"}), who="bob"
    ),
    "another's name": RefusalCase("GET", "/v1/jobs/mine?owner=ann", 403, "forbidden", who="bob"),
    "another's name for a job": RefusalCase("POST", "/v1/jobs?owner=ann", 403, "forbidden", job(), who="bob"),
    "a path for an owner": RefusalCase("GET", "/v1/jobs?owner=a.b", 422, "input_invalid", who="admin"),
    "a scope that the key lacks": RefusalCase("POST", "/v1/jobs", 403, "forbidden", job(), who="reader"),
    "a cancel without the scope": RefusalCase("POST", "/v1/jobs/mine/cancel", 403, "forbidden", who="reader"),
    "an upload without the scope": RefusalCase(
        "PUT", f"/v1/assets/{SHA}", 403, "forbidden", {"content": FILE}, "reader"
    ),
    "a key without the scope": RefusalCase("POST", "/v1/keys", 403, "forbidden", {"json": {"owner": "ann"}}),
    "no key": RefusalCase("POST", "/v1/jobs", 401, "unauthorized", job(), who="nobody"),
    "a key that is none": RefusalCase(
        "POST", "/v1/jobs", 401, "unauthorized", job() | {"headers": {"Authorization": "Bearer lamp_x_y"}}, who="nobody"
    ),
    "the same id for something else": RefusalCase("PUT", "/v1/jobs/mine", 409, "conflict", job()),
    "a retry of what has not ended": RefusalCase("POST", "/v1/jobs/mine/retry", 409, "job_not_final"),
    "a deletion of what has not ended": RefusalCase("DELETE", "/v1/jobs/mine", 409, "job_not_final"),
}
CASES = BODIES | FILES | STRANGERS


@pytest.mark.parametrize("name", CASES)
async def test_a_refusal_says_what_the_protocol_says_and_writes_nothing(stage: RefusalStage, name: str):
    case = CASES[name]
    who = stage.running.admin._http if case.who == "admin" else getattr(stage, case.who)
    before = await stage.written()
    reply = await who.request(case.method, case.path, **case.given)
    assert reply.headers["content-type"] == "application/problem+json", reply.text
    problem = reply.json()
    assert (reply.status_code, problem["code"]) == (case.status, case.code), problem
    assert problem["status"] == case.status
    assert problem["detail"]
    assert len(reply.content) < 4000  # the error does not repeat what was sent
    assert await stage.written() == before


@pytest.mark.parametrize("trick", TRICKS)
async def test_an_id_that_is_no_token_is_refused(stage: RefusalStage, trick: str):
    before = await stage.written()
    reply = await stage.ann.put(f"/v1/jobs/{quote(trick, safe='')}", **job())
    assert (reply.status_code, reply.json()["code"]) in {(422, "input_invalid"), (404, "not_found"), (405, "not_found")}
    assert await stage.written() == before


@pytest.mark.parametrize(
    "trick", ["../../../tmp/out", "/etc/passwd", "..\\..\\x", "a\u202egpj.exe", ".hidden", "con", "-rf"]
)
async def test_a_file_s_name_cannot_leave_its_folder(stage: RefusalStage, trick: str):
    content = f"named {trick}".encode()
    reply = await stage.ann.post("/v1/assets", content=content, headers={"X-Filename": quote(trick)})
    assert reply.status_code == 201
    name = reply.json()["name"]
    assert name == Path(name).name
    assert not set(name) & set("/\\\u202e")
    assert not name.startswith((".", "-"))
    data = stage.running.installation.folder / "edge" / "assets"
    assert [path for path in data.rglob("*") if path.is_file() and path.read_bytes() == content]
    shown = (await stage.ann.get(f"/v1/assets/{reply.json()['sha256']}")).headers
    assert "/" not in shown["content-disposition"].replace("filename*=utf-8''", "")
    assert shown["x-content-type-options"] == "nosniff"


async def test_the_same_id_is_another_owner_s_own_job(stage: RefusalStage):
    reply = await stage.bob.put("/v1/jobs/mine", **job())
    assert (reply.status_code, reply.json()["owner"]) == (202, "bob")
    assert (await stage.ann.get("/v1/jobs/mine")).json()["input"]["file"] == f"sha256:{SHA}"


async def test_the_same_idempotency_key_is_another_owner_s_own_job(stage: RefusalStage):
    named = {"Idempotency-Key": "k"}
    ids = {(await who.post("/v1/jobs", **job(), headers=named)).json()["id"] for who in (stage.ann, stage.bob)}
    assert len(ids) == 2


async def test_a_revoked_key_is_refused_within_five_seconds(stage: RefusalStage):
    made = await new_key(stage.running, "ann")
    async with AsyncClient(stage.running.installation.url, made["key"]) as client:
        await client.job("mine")
        (await stage.running.admin._http.delete(f"/v1/keys/{made['id']}")).raise_for_status()
        assert (await client._http.get("/v1/jobs/mine")).status_code == 401


async def test_a_key_that_another_edge_revoked_is_refused_within_five_seconds(stage: RefusalStage):
    made = await new_key(stage.running, "ann")
    async with AsyncClient(stage.running.installation.url, made["key"]) as client:
        await client.job("mine")
        await stage.running.bus.api_keys.delete(made["id"])  # the edge learns of a revoked key only from these messages

        async def refused() -> bool:
            return (await client._http.get("/v1/jobs/mine")).status_code == 401

        await wait_for(refused, timeout_s=CACHE_TTL_S + 0.5)
