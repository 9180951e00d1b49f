"""Downloads from a real server: ranges, revalidation, names, and headers that restrict browsers."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from litestar import Litestar, asgi
from litestar.types import Receive, Scope, Send

from edge.http.responses import asset_response
from edge.store.directory import open_directory
from edge.store.port import AssetStore
from edge.store.remote import open_remote
from tests.support.fake_store import FakeStore
from tests.support.http_server import serve_app
from tests.support.s3_buckets import create_bucket, s3_environ

BODY = bytes(range(256)) * 10_000  # 2.56 MB
SHA = hashlib.sha256(BODY).hexdigest()
ETAG = f'"{SHA}"'
NAME = "演讲 1.mp4"


async def body(data: bytes = BODY) -> AsyncIterator[bytes]:
    yield data


def app_over(store: AssetStore, name: str = NAME, media_type: str = "video/mp4") -> Litestar:
    @asgi("/a", is_mount=True, copy_scope=True)
    async def download(scope: Scope, receive: Receive, send: Send) -> None:
        response = await asset_response(store, scope["path"].strip("/")[-64:], name, media_type, scope)
        assert response is not None
        await response(scope, receive, send)

    return Litestar([download], openapi_config=None)


@pytest.fixture
async def url(tmp_path: Path, anyio_backend: object) -> AsyncIterator[str]:
    async with open_directory(tmp_path) as store:
        await store.write(body(), SHA, len(BODY))
        async with serve_app(app_over(store)) as base:
            yield f"{base}/a/{SHA}"


@pytest.fixture
async def client(anyio_backend: object) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(trust_env=False, timeout=60) as client:
        yield client


async def test_the_whole_file_with_its_headers(url: str, client: httpx2.AsyncClient) -> None:
    got = await client.get(url)
    assert (got.status_code, got.content) == (200, BODY)
    assert got.headers["etag"] == ETAG
    assert got.headers["accept-ranges"] == "bytes"
    assert got.headers["content-type"] == "video/mp4"
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["content-disposition"] == "inline; filename*=utf-8''%E6%BC%94%E8%AE%B2%201.mp4"


async def test_head_tells_the_size_and_sends_nothing(url: str, client: httpx2.AsyncClient) -> None:
    got = await client.head(url)
    assert (got.status_code, got.content) == (200, b"")
    assert got.headers["content-length"] == str(len(BODY))
    assert got.headers["etag"] == ETAG


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=1000-", 1000, len(BODY)),
        ("bytes=-5", len(BODY) - 5, len(BODY)),
        ("bytes=5-9", 5, 10),
    ],
)
async def test_one_range(url: str, client: httpx2.AsyncClient, asked: str, start: int, stop: int) -> None:
    got = await client.get(url, headers={"Range": asked})
    assert (got.status_code, got.content) == (206, BODY[start:stop])
    assert got.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(BODY)}"


async def test_several_ranges_come_as_one_multipart(url: str, client: httpx2.AsyncClient) -> None:
    got = await client.get(url, headers={"Range": "bytes=0-9,100-109"})
    kind, _, boundary = got.headers["content-type"].partition("; boundary=")
    assert (got.status_code, kind) == (206, "multipart/byteranges")
    parts = got.content.split(b"--" + boundary.encode())[1:-1]
    assert [part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n") for part in parts] == [BODY[:10], BODY[100:110]]


async def test_a_range_past_the_end_is_416_with_the_size(url: str, client: httpx2.AsyncClient) -> None:
    got = await client.get(url, headers={"Range": f"bytes={len(BODY)}-"})
    assert got.status_code == 416
    assert got.headers["content-range"] == f"bytes */{len(BODY)}"


@pytest.mark.parametrize("asked", ["lines=1-2", "bytes=abc", "bytes=5-2", "bytes=", "bytes", "bytes=1-" + "9" * 5000])
async def test_a_range_that_cannot_be_read_is_ignored(url: str, client: httpx2.AsyncClient, asked: str) -> None:
    got = await client.get(url, headers={"Range": asked})
    assert (got.status_code, got.content) == (200, BODY)


@pytest.mark.parametrize(("condition", "status"), [(ETAG, 206), ('"another"', 200)])
async def test_a_resumed_download_gets_the_rest_of_the_same_file_only(
    url: str, client: httpx2.AsyncClient, condition: str, status: int
) -> None:
    got = await client.get(url, headers={"Range": "bytes=5-", "If-Range": condition})
    assert got.status_code == status


@pytest.mark.parametrize("tags", [ETAG, f"W/{ETAG}", f'"x", {ETAG}', "*"])
async def test_a_client_that_has_it_is_told_so(url: str, client: httpx2.AsyncClient, tags: str) -> None:
    got = await client.get(url, headers={"If-None-Match": tags})
    assert (got.status_code, got.content, got.headers["etag"]) == (304, b"", ETAG)


async def test_a_client_with_another_file_gets_this_one(url: str, client: httpx2.AsyncClient) -> None:
    assert (await client.get(url, headers={"If-None-Match": '"x"'})).status_code == 200


@pytest.mark.parametrize(
    ("media_type", "how"),
    [("text/html", "attachment"), ("image/svg+xml", "attachment"), ("image/png", "inline"), ("audio/wav", "inline")],
)
async def test_only_what_cannot_run_is_shown_in_place(client: httpx2.AsyncClient, media_type: str, how: str) -> None:
    store = FakeStore()
    await store.write(body(b"<script>"), None, 100)
    sha256 = hashlib.sha256(b"<script>").hexdigest()
    async with serve_app(app_over(store, '../x"\r\n.html', media_type)) as base:
        got = await client.get(f"{base}/a/{sha256}")
    assert got.headers["content-disposition"].startswith(how)
    assert "x_" in got.headers["content-disposition"]
    assert ".." not in got.headers["content-disposition"]


async def test_a_store_without_local_files_passes_the_bytes_through(client: httpx2.AsyncClient) -> None:
    store = FakeStore()
    await store.write(body(), SHA, len(BODY))
    async with serve_app(app_over(store)) as base:
        url, resumed = f"{base}/a/{SHA}", {"Range": "bytes=5-", "If-Range": ETAG}
        whole, head = await client.get(url), await client.head(url)
        part = await client.get(url, headers=resumed)
        other = await client.get(url, headers=resumed | {"If-Range": '"another"'})
        beyond = await client.get(url, headers={"Range": f"bytes={len(BODY)}-"})
    assert (whole.status_code, whole.content, whole.headers["etag"]) == (200, BODY, ETAG)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(BODY)))
    assert (part.status_code, part.content) == (206, BODY[5:])
    assert part.headers["content-range"] == f"bytes 5-{len(BODY) - 1}/{len(BODY)}"
    assert (other.status_code, other.content) == (200, BODY)
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(BODY)}")


async def test_a_bucket_serves_its_bytes_itself(client: httpx2.AsyncClient, tmp_path: Path) -> None:
    with create_bucket() as url:
        async with open_remote(url, tmp_path) as store, serve_app(app_over(store)) as base:
            await store.write(body(), SHA, len(BODY))
            led = await client.get(f"{base}/a/{SHA}")
            assert (led.status_code, led.headers["cache-control"]) == (307, "no-store")
            assert led.headers["location"].startswith(s3_environ()["AWS_ENDPOINT_URL"])
            part = await client.get(f"{base}/a/{SHA}", headers={"Range": "bytes=5-9"}, follow_redirects=True)
            assert (part.status_code, part.content) == (206, BODY[5:10])
            head = await client.head(f"{base}/a/{SHA}")  # a URL signed for GET does not answer HEAD
            assert (head.status_code, head.headers["content-length"]) == (200, str(len(BODY)))


async def test_a_bucket_that_may_not_be_seen_is_read_by_the_edge(client: httpx2.AsyncClient, tmp_path: Path) -> None:
    with create_bucket() as url:
        async with open_remote(url, tmp_path, presign=False) as store, serve_app(app_over(store)) as base:
            await store.write(body(), SHA, len(BODY))
            part = await client.get(f"{base}/a/{SHA}", headers={"Range": "bytes=-4"})
            assert (part.status_code, part.content) == (206, BODY[-4:])


async def test_what_the_store_lacks_is_left_to_the_caller() -> None:
    assert (
        await asset_response(FakeStore(), SHA, NAME, "video/mp4", {"type": "http", "method": "GET", "headers": []})
        is None
    )
