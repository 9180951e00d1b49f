"""Held: ambiguous framing, old TLS, ranges without end, names and media types that would become headers or pages."""

import re
import ssl
import warnings
from base64 import b64encode
from collections.abc import Awaitable, Callable
from itertools import product
from urllib.parse import quote

import anyio
import httpx2
import pytest
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream
from structlog.testing import capture_logs

from tests.attack.conftest import ServeFunction
from tests.edge.routes.conftest import edge
from tests.support.served_edge import ServedEdge

__all__ = ["edge"]

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
LENGTH = b"Content-Length: %d" % len(SMUGGLED)
CHUNKED = b"Transfer-Encoding: chunked"
# Two readers of the same bytes could disagree where each of these ends. The rest of the bytes is a second request.
AMBIGUOUS = {
    "a length and chunks": [LENGTH, CHUNKED],
    "chunks and a length": [CHUNKED, LENGTH],
    "two lengths": [b"Content-Length: 0", LENGTH],
    "two lengths in one": [b"Content-Length: 0, %d" % len(SMUGGLED)],
    "a length with a sign": [b"Content-Length: +%d" % len(SMUGGLED)],
    "a length in hex": [b"Content-Length: 0x20"],
    "a length below nothing": [b"Content-Length: -1"],
    "a length without an end": [b"Content-Length: " + b"9" * 40],
    "a space before the colon": [b"Content-Length : 0"],
    "a folded length": [b"X: y", b" Content-Length: 0", LENGTH, b"Content-Length: 0"],
    "chunks that are not the last encoding": [b"Transfer-Encoding: chunked, identity"],
    "an encoding like chunked": [b"Transfer-Encoding: xchunked"],
    "a NUL in a header": [b"X: a\0b", b"Content-Length: 0"],
}
FILE = bytes(100_000)
RANGES = 5000
NAMES = (
    "../../../etc/cron.d/x",
    "..\\..\\boot.ini",
    'a"; filename="b.html',
    "a\r\nSet-Cookie: a=b",
    "a\r\n\r\n<script>.html",
    "a\0.html",
    "\u202egnp.exe",
    "n" * 1000 + ".mp4",
    "...",
)
KINDS = ("text/html", "image/svg+xml", "application/xhtml+xml", "text/html; charset=utf-7", "text/xml")


async def _everything(stream: ByteStream) -> bytes:
    """Return all bytes until the server closes."""
    said = b""
    with anyio.fail_after(10):
        while True:
            try:
                said += await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return said


@pytest.mark.parametrize("headers", AMBIGUOUS.values(), ids=AMBIGUOUS)
async def test_a_request_whose_end_is_ambiguous_is_refused_and_hides_no_other(
    serve: ServeFunction, headers: list[bytes]
):
    head = b"\r\n".join([b"POST /first HTTP/1.1", b"Host: x", *headers])
    async with serve() as target, target.connected() as stream:
        await stream.send(head + b"\r\n\r\n" + SMUGGLED)
        said = await _everything(stream)
    # Where the app has the request already, the connection ends without an answer.
    assert not said or said.startswith(b"HTTP/1.1 400 "), said
    assert b"/smuggled" not in said
    assert len(re.findall(rb"HTTP/1\.1 \d", said)) <= 1, said


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_tls_before_1_2_is_refused_by_the_server(serve: ServeFunction, version: ssl.TLSVersion):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")  # or this client would refuse by itself
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that these versions are old is what is tested
        context.minimum_version = context.maximum_version = version
    with capture_logs() as logs:
        async with serve(tls=True) as target, await anyio.connect_tcp("127.0.0.1", target.port) as plain:
            with pytest.raises(ssl.SSLError, match="TLSV1_ALERT_PROTOCOL_VERSION"):
                await TLSStream.wrap(plain, server_side=False, ssl_context=context, standard_compatible=False)
    (refused,) = [log for log in logs if log["event"] == "tls_handshake_failed"]
    assert "no TLS newer than 1.1" in refused["error"], "the client would have spoken it"


@pytest.mark.parametrize(
    "ranges",
    [["0-"] * RANGES, [f"{at}-" for at in range(RANGES)], [f"-{at}" for at in range(1, RANGES)]],
    ids=["the same", "shorter and shorter", "longer and longer"],
)
async def test_overlapping_ranges_make_no_answer_larger_than_the_file(edge: ServedEdge, ranges: list[str]):
    stored = (await edge.ann.post("/v1/assets", content=FILE)).json()
    reply = await edge.ann.get(stored["url"], headers={"Range": f"bytes={','.join(ranges)}"})
    assert reply.status_code in {200, 206, 416}
    assert len(reply.content) <= len(FILE) + 1000


Upload = Callable[[httpx2.AsyncClient, str, str], Awaitable[httpx2.Response]]


def _body(name: str, kind: str) -> bytes:
    """Upload different bytes for each name and type: equal bytes would keep the first name."""
    return f"{name} {kind}".encode()


async def _by_header(client: httpx2.AsyncClient, name: str, kind: str) -> httpx2.Response:
    headers = {"X-Filename": quote(name), "Content-Type": kind}
    return await client.post("/v1/assets", content=_body(name, kind), headers=headers)


async def _by_query(client: httpx2.AsyncClient, name: str, kind: str) -> httpx2.Response:
    params, headers = {"name": name}, {"Content-Type": kind}
    return await client.post("/v1/assets", params=params, content=_body(name, kind), headers=headers)


async def _by_form(client: httpx2.AsyncClient, name: str, kind: str) -> httpx2.Response:
    return await client.post("/v1/assets", files={"file": (name, _body(name, kind), kind)})


async def _by_tus(client: httpx2.AsyncClient, name: str, kind: str) -> httpx2.Response:
    said = {"filename": name, "filetype": kind}
    metadata = ",".join(f"{word} {b64encode(value.encode()).decode()}" for word, value in said.items())
    size = {"Upload-Length": str(len(_body(name, kind))), "Content-Type": "application/offset+octet-stream"}
    headers = {"Tus-Resumable": "1.0.0", "Upload-Metadata": metadata, **size}
    return await client.post("/v1/uploads", content=_body(name, kind), headers=headers)


@pytest.mark.parametrize("upload", [_by_header, _by_query, _by_form, _by_tus], ids=["header", "query", "form", "tus"])
async def test_no_name_or_type_becomes_a_path_a_header_or_a_page(edge: ServedEdge, upload: Upload):
    for name, kind in product(NAMES, KINDS):
        made = await upload(edge.ann, name, kind)
        assert made.status_code == 201, (name, kind, made.text)
    listed = (await edge.ann.get("/v1/assets")).json()["assets"]
    assert len(listed) == len(NAMES) * len(KINDS)
    for asset in listed:
        assert not set(asset["name"]) & set('/\\\0\r\n"\u202e'), asset["name"]
        assert asset["name"].strip("."), asset["name"]
        assert len(asset["name"].encode()) <= 100
        reply = await edge.ann.head(asset["url"])
        assert "set-cookie" not in reply.headers
        assert reply.headers["content-disposition"].startswith("attachment;"), (asset["name"], reply.headers)
        assert reply.headers["x-content-type-options"] == "nosniff"
