"""Keys at `/easy/…`: which requests need one."""

import httpx2
from msgspec import structs

from schemas.credentials import Scope
from tests.edge.facades.heygem.conftest import HeygemClient, parse_body

BODY = {"audio_url": "speech.wav", "video_url": "face.mp4", "code": "mine"}
FAULT = {"code": 9999, "data": {}, "msg": "系统异常", "success": False}


ELSEWHERE = [
    {"Forwarded": "for=192.0.2.1"},
    {"X-Forwarded-For": "192.0.2.1"},
    {"X-Forwarded-Proto": "https"},
    {"X-Real-IP": "192.0.2.1"},
    {"Host": "evil.example"},
    {"Host": "127.0.0.1.evil.example:80"},
    {"Host": "127.0.0.1"},  # not this port: something in between has another
    {"Host": "localhost:1"},
    {"CF-Connecting-IP": "192.0.2.1"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"X-API-Key": "nonsense"},
    {"Authorization": "Bearer lamp_nobody_aaaaaaaaaaaaaaaaaaaaaaaa"},
]


async def test_what_may_come_from_elsewhere_needs_a_valid_key(heygem: HeygemClient):
    for headers in ELSEWHERE:
        for reply in (
            await heygem.local.post("/easy/submit", json=BODY, headers=headers),
            await heygem.local.get("/easy/query?code=x", headers=headers),
            await heygem.local.get("/easy/download/x-r.mp4", headers=headers),
        ):
            assert parse_body(reply) == FAULT, headers
            assert reply.headers["lamplighter-error"].startswith("unauthorized")
            assert "lamp_?" not in reply.headers["lamplighter-error"]
    assert not await heygem.world.bus.job_store.keys()


async def test_programs_of_this_machine_need_none(heygem: HeygemClient):
    port = heygem.local.base_url.port
    for headers in ({}, {"Host": f"localhost:{port}"}, {"Host": f"[::1]:{port}"}, {"Origin": "http://localhost:3000"}):
        assert parse_body(await heygem.local.post("/easy/submit", json=BODY, headers=headers))["code"] == 10000, headers


async def test_a_key_counts_wherever_it_is_sent_and_owns_the_job(heygem: HeygemClient):
    passed = {"X-Forwarded-For": "192.0.2.1"}
    for headers, query in [
        ({"Authorization": f"Bearer {heygem.key}"}, ""),
        ({"X-API-Key": heygem.key}, ""),
        ({}, f"?key={heygem.key}"),
    ]:
        reply = await heygem.local.post(f"/easy/submit{query}", json=BODY, headers=passed | headers)
        assert parse_body(reply)["code"] == 10000
    assert (await heygem.job("mine", "ann")).owner == "ann"
    assert (await heygem.query("mine"))["code"] == 10004  # nobody's key sees nothing of ann's


async def test_a_key_without_the_scope_is_refused(heygem: HeygemClient):
    reader = structs.replace(await key_of(heygem), scopes=(Scope.JOBS_READ,))
    await heygem.world.bus.api_keys.put(reader.id, reader)
    headers = {"X-API-Key": heygem.key}
    assert parse_body(await heygem.local.post("/easy/submit", json=BODY, headers=headers)) == FAULT
    assert parse_body(await heygem.local.get("/easy/query?code=mine", headers=headers))["code"] == 10004


async def key_of(heygem: HeygemClient):
    (row,) = (await heygem.world.bus.api_keys.rows()).values()
    return row.value


async def test_the_edge_s_own_port_asks_everybody(heygem: HeygemClient):
    async with httpx2.AsyncClient(base_url=heygem.url, timeout=60) as client:
        assert parse_body(await client.post("/easy/submit", json=BODY)) == FAULT
        reply = await client.post("/easy/submit", json=BODY, headers={"X-API-Key": heygem.key})
        assert parse_body(reply)["code"] == 10000
