"""Malformed bodies and headers: the response is quick, below 500, and leaves nothing behind."""

import json
import socket
from collections.abc import AsyncIterator
from urllib.parse import quote, urlsplit

import anyio
import httpx2
import pytest
from anyio import to_thread
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.served_edge import ServedEdge, serve_edge

SOON_S = 20.0
JSON = ("/v1/jobs", "/v1/batches", "/v1/assets/check", "/v1/tokens", "/v1/keys", "/v1/hosts", "/v1/webhooks/secret")
POSTS = (
    *JSON,
    "/v1/assets",
    "/v1/uploads",
    "/v1/hosts/gpu-9/power",
    "/v1/hosts/none/maintenance",
    "/v1/endpoints/none/pause",
    "/v1/jobs/none/cancel",
    "/v1/jobs/none/retry",
    "/v2/echo/run",
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40) | st.just(10**400)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))
NAMES = st.sampled_from(
    [
        "endpoint",
        "input",
        "priority",
        "policy",
        "tags",
        "webhook",
        "deadline",
        "not_before",
        "jobs",
        "digests",
        "scopes",
        "ttl_s",
        "owner",
        "name",
        "id",
        "want",
        "until",
        "secret",
        "language",
        "expires_at",
        "trace_id",
    ]
)
GOOD = st.sampled_from(["echo", {"text": "hi"}, {"file": "sha256:" + "0" * 64}, "high", ["jobs:read"], "2026-11-22"])
BODIES = st.dictionaries(NAMES, VALUES | GOOD, max_size=8).map(lambda body: json.dumps(body).encode())
KINDS = st.sampled_from(
    [
        "application/json",
        "text/plain",
        "",
        "multipart/form-data",
        "multipart/form-data; boundary=x",
        "a/b; charset=\xff",
    ]
)
QUICK = settings(
    max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
LONG = b"x" * 5000
NOT_SET_UP = 501  # no machine may join the edge of these tests


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory, anyio_backend: object) -> AsyncIterator[ServedEdge]:
    async with serve_edge(tmp_path_factory.mktemp("garbage")) as edge:
        yield edge


async def post(
    edge: ServedEdge, path: str, body: bytes, headers: dict[str, bytes | str] | None = None
) -> httpx2.Response:
    with anyio.fail_after(SOON_S):
        reply = await edge.admin.post(path, content=body, headers=headers)
    assert reply.status_code < 500 or (path == "/v1/hosts" and reply.status_code == NOT_SET_UP), reply.text
    return reply


@QUICK
@given(path=st.sampled_from(POSTS), body=BODIES | st.binary(max_size=200), kind=KINDS)
async def test_any_body_is_answered(shared: ServedEdge, path: str, body: bytes, kind: str):
    await post(shared, path, body, {"Content-Type": kind.encode("latin-1")})


BROKEN = [
    b"",
    b"[]",
    b"null",
    b"{",
    b"\xff\xfe\x00",
    b'{"endpoint":"\xc3\x28","input":{}}',
    b'{"endpoint":"\\ud800","input":{}}',
    b"[" * 200_000,
    b'{"input":' * 20_000,
    b'{"endpoint":"echo","input":{"text":' + b"[" * 5000 + b"]" * 5000 + b"}}",
    b'{"endpoint":"echo","input":{"seconds":1e999}}',
    b'{"endpoint":"echo","input":{"seconds":' + b"9" * 5000 + b"}}",
    b'{"endpoint":"echo","input":{},"policy":{"max_attempts":99999999999999999999999}}',
    b'{"endpoint":"echo","input":{},"deadline":"9999-12-31T23:59:59-23:00"}',
    b'{"endpoint":"ec\\u0000ho","input":{}}',
    b'{"endpoint":"echo","input":{},"tags":{"a\\u0000":"\\ud83d"}}',
    b'{"endpoint":"' + b"x" * 2_000_000 + b'"}',
    b"a=b&c=d",
]


@pytest.mark.parametrize("path", JSON)
async def test_what_is_broken_is_refused_and_makes_nothing(shared: ServedEdge, path: str):
    before = await shared.world.bus.job_store.keys()
    for body in BROKEN:
        reply = await post(shared, path, body)
        assert reply.status_code >= 400, (path, body[:60])
        assert reply.headers["content-type"] == "application/problem+json"
    assert await shared.world.bus.job_store.keys() == before


async def test_of_a_name_given_twice_the_last_counts(shared: ServedEdge):
    """The last of two equal keys counts, as in the JSON parsers of common languages."""
    body = b'{"endpoint":"nowhere","endpoint":"echo","input":{"text":"first"},"input":{"text":"last"}}'
    assert (await post(shared, "/v1/jobs", body)).json()["input"]["text"] == "last"


@pytest.mark.parametrize(
    "name", ["a\0b", "../../etc/passwd", "\r\nX: y", "a" * 5000, "\udcff", "", ".", "..", "名\u2028"]
)
async def test_a_name_can_be_anything(shared: ServedEdge, name: str):
    sent = quote(name, errors="surrogateescape")
    reply = await post(shared, "/v1/assets", b"bytes of " + sent.encode()[:50], {"X-Filename": sent})
    assert reply.status_code in {200, 201, 422}
    if reply.status_code != 422:
        got = await shared.admin.get(reply.json()["url"])
        assert (got.status_code, got.content) == (200, b"bytes of " + sent.encode()[:50])


HEADERS = st.sampled_from(
    [
        "Authorization",
        "X-API-Key",
        "Idempotency-Key",
        "Prefer",
        "X-Trace-Id",
        "X-Filename",
        "Accept-Language",
        "Cookie",
        "Range",
        "If-None-Match",
        "Last-Event-ID",
        "Upload-Metadata",
        "Upload-Length",
        "Upload-Checksum",
        "Content-Type",
    ]
)
TEXTS = st.binary(max_size=60).map(bytes.strip).filter(lambda text: not set(text) & set(b"\r\n\0\v\f"))


@QUICK
@given(path=st.sampled_from(POSTS), headers=st.dictionaries(HEADERS, TEXTS | st.just(LONG), max_size=4))
async def test_any_header_is_answered(shared: ServedEdge, path: str, headers: dict[str, bytes]):
    await post(shared, path, b'{"endpoint":"echo","input":{}}', {"Tus-Resumable": b"1.0.0", **headers})


LIES = {
    "a chunk that is longer than it says": b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}and more\r\n0\r\n\r\n",
    "a chunk length that is none": b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a negative chunk length": b"Transfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n",
    "a huge chunk length": b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 2\r\nContent-Length: 30\r\n\r\n{}",
    "a length and chunks": b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a length that is none": b"Content-Length: many\r\n\r\n{}",
    "a negative length": b"Content-Length: -1\r\n\r\n{}",
    "less than announced": b"Content-Length: 100\r\n\r\n{}",
    "chunks without an end": b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
    "an encoding that nobody knows": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/assets", "/v1/uploads"])
async def test_a_body_that_lies_about_its_length_ends_below_500(shared: ServedEdge, path: str, lie: bytes):
    """The server rejects the request or closes the connection. The next request works, and nothing was created."""
    before = await shared.world.bus.job_store.keys()
    said = await to_thread.run_sync(spoken, shared, path, lie)
    assert not said.startswith(b"HTTP/1.1 5"), said
    assert await shared.world.bus.job_store.keys() == before
    assert (await shared.ann.get("/v1/jobs?limit=1")).status_code == 200


def spoken(edge: ServedEdge, path: str, rest: bytes) -> bytes:
    """Send raw bytes and close our side. Return the start of the response."""
    place = urlsplit(edge.url)
    assert place.hostname is not None
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {edge.texts['ann']}\r\nTus-Resumable: 1.0.0\r\n"
    with socket.create_connection((place.hostname, place.port or 80), timeout=SOON_S) as connection:
        connection.sendall(head.encode() + rest)
        connection.shutdown(socket.SHUT_WR)
        try:
            return connection.recv(200)
        except ConnectionResetError:
            return b""
