"""L3, L6, L7, L8: smaller findings of the penetration test."""

import ssl

import anyio
import pytest

from schemas.access import Scope
from tests.attack.conftest import Serve
from tests.edge.routes.conftest import Face, face

__all__ = ["face"]

FORM = {"job": (None, '{"endpoint": "echo", "input": {"text": "hi"}}'), "file": ("a.txt", b"bytes")}


async def test_l3_a_key_that_may_only_submit_stores_no_file(face: Face):
    made = (await face.admin.post("/v1/keys", json={"owner": "ann", "scopes": ["jobs:write"]})).json()
    for method, path in (("POST", "/v1/jobs"), ("PUT", "/v1/jobs/mine")):
        reply = await face.anyone.request(method, path, files=FORM, headers={"X-API-Key": made["key"]})
        assert (reply.status_code, reply.json()["code"]) == (403, "forbidden")
        assert Scope.ASSETS_WRITE in reply.json()["detail"]
    assert (await face.ann.get("/v1/assets")).json()["assets"] == []
    assert not await face.world.bus.records.keys()


async def test_l6_metrics_show_an_ordinary_key_no_other_owners_jobs(face: Face):
    await face.bob.put("/v1/jobs/mine", json={"endpoint": "echo", "input": {"text": "hi"}})
    await face.world.settled()
    line = 'lamplighter_jobs{endpoint="echo",status="queued"} 1.0'
    made = (await face.admin.post("/v1/keys", json={"owner": "ops", "scopes": ["hosts:read", "power"]})).json()
    assert line in (await face.bob.get("/metrics")).text
    assert line in (await face.admin.get("/metrics")).text
    assert line in (await face.anyone.get("/metrics", headers={"X-API-Key": made["key"]})).text
    assert "lamplighter_jobs{" not in (await face.ann.get("/metrics")).text


@pytest.mark.parametrize("path", ["/v1/keys", "/v1/jobs", "/v1/webhooks/secret", "/v1/nothing", "/livez"])
async def test_l8_answers_are_kept_in_no_cache_and_taken_for_no_page(face: Face, path: str):
    reply = await face.admin.get(path)
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["x-content-type-options"] == "nosniff"


async def test_l8_a_file_says_for_itself_how_it_is_cached(face: Face):
    stored = (await face.ann.post("/v1/assets", content=b"bytes")).json()
    reply = await face.ann.get(stored["url"])
    assert reply.headers.get_list("cache-control") == ["private, no-cache"]
    assert reply.headers.get_list("x-content-type-options") == ["nosniff"]


async def test_l8_the_server_does_not_say_what_it_is(serve: Serve):
    async with serve() as target:
        assert b"\r\nserver:" not in (await target.ask()).lower()


async def test_l8_tls_has_no_suites_with_cbc(serve: Serve):
    async with serve(tls=True) as target:
        with pytest.raises((ssl.SSLError, anyio.EndOfStream)):
            await target.handshake("ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES256-SHA")
        assert await target.handshake("ECDHE-ECDSA-AES128-GCM-SHA256") == "ECDHE-ECDSA-AES128-GCM-SHA256"
