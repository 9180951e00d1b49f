"""Malformed requests: the response is quick, has status 200 and the vendor's format, and leaves nothing behind."""

import json
from urllib.parse import quote, urlencode

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.edge.facades.heygem.conftest import HeygemClient, parse_body, run_heygem_edge

CODES = {10000, 10001, 10002, 10004, 10005, 9999}
NAMES = ("audio_url", "video_url", "code", "chaofen", "watermark_switch", "pn", "digital_auth", "sign")
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))
FILES = st.sampled_from(["speech.wav", "face.mp4", "../temp/face.mp4", "http://127.0.0.1/x", "sha256:" + "a" * 64, "/"])
BODIES = st.dictionaries(st.sampled_from(NAMES), VALUES | FILES | st.just("code-9"), max_size=8)
RAW = st.binary(max_size=200) | BODIES.map(lambda body: json.dumps(body).encode())
HEADERS = st.sampled_from(
    [{}, {"Content-Type": "application/json"}, {"Content-Type": "application/x-www-form-urlencoded"}]
)
METHODS = st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE"])


async def send(heygem: HeygemClient, method: str, path: str, **request: object) -> int:
    with anyio.fail_after(20):
        reply = await heygem.local.request(method, path, **request)
    assert parse_body(reply)["code"] in CODES
    return int(reply.json()["code"])


@pytest.fixture(scope="module")
async def shared_desk(tmp_path_factory: pytest.TempPathFactory, anyio_backend: object):
    root = tmp_path_factory.mktemp("shared")
    (root / "temp").mkdir()
    for name in ("speech.wav", "face.mp4"):
        (root / "temp" / name).write_bytes(name.encode())
    async with run_heygem_edge(tmp_path_factory.mktemp("edge"), root) as heygem:
        yield heygem


QUICK = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@QUICK
@given(body=RAW, headers=HEADERS, method=METHODS)
async def test_any_submit_is_answered(shared_desk: HeygemClient, body, headers, method):
    code = await send(shared_desk, method, "/easy/submit", content=body, headers=headers)
    assert method == "POST" or code == 9999


@QUICK
@given(code=st.text(max_size=80), more=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3))
async def test_any_query_and_download_is_answered(shared_desk: HeygemClient, code, more):
    query = urlencode(more | {"code": code}, errors="replace")
    await send(shared_desk, "GET", f"/easy/query?{query}")
    await send(shared_desk, "GET", f"/easy/download/{quote(code, safe='', errors='replace')}-r.mp4")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe\x00",
        b"[" * 200_000,
        b'{"code":' * 20_000,
        b'{"audio_url":1e999,"video_url":"a","code":"b"}',
        b'{"audio_url":"\\ud800","video_url":"a","code":"b"}',
        b'{"audio_url":"a\\u0000b","video_url":"face.mp4","code":"b"}',
        b'{"audio_url":"' + b"../" * 300_000 + b'","video_url":"face.mp4","code":"b"}',
        b'{"audio_url":"' + b"x" * 2_000_000 + b'"}',
        b'{"audio_url":"speech.wav","video_url":"face.mp4","code":"a b"}',
        b'{"audio_url":"speech.wav","video_url":"face.mp4","code":"a\\n"}',
        b'{"audio_url":"speech.wav","video_url":"face.mp4","code":true}',
        b"audio_url=speech.wav&video_url=face.mp4&code=c",
    ],
    ids=lambda body: ascii(body[:30]),
)
async def test_bodies_that_break_things_are_a_fault(shared_desk: HeygemClient, body):
    assert await send(shared_desk, "POST", "/easy/submit", content=body) == 9999
