"""Contract of every asset source: the fake, the edge, and a bucket to which the edge redirects."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from edge.store.directory import open_directory
from edge.store.port import AssetStore
from edge.store.remote import open_remote
from runner.assets.cache import AssetSource
from runner.assets.client import asset_client
from runner.assets.port import AssetGone
from tests.support.asset_server import KEY, AssetServer, sha256_of
from tests.support.fake_asset_fetch import FakeAssetFetch
from tests.support.http_server import serve_app
from tests.support.s3_buckets import create_bucket

BODY = bytes(range(253)) * 10_000


@asynccontextmanager
async def fake(_: Path) -> AsyncIterator[AssetSource]:
    yield FakeAssetFetch(BODY, b"")


@asynccontextmanager
async def over_http(folder: Path) -> AsyncIterator[AssetSource]:
    async with open_directory(folder) as store, _client_of(store) as client:
        yield client


@asynccontextmanager
async def from_a_bucket(scratch: Path) -> AsyncIterator[AssetSource]:
    """Redirect to the bucket. The API key stays with the edge: a bucket refuses requests with a foreign key."""
    with create_bucket() as url:
        async with open_remote(url, scratch) as store, _client_of(store) as client:
            yield client


@asynccontextmanager
async def _client_of(store: AssetStore) -> AsyncIterator[AssetSource]:
    server = AssetServer(store)
    await server.add(BODY)
    await server.add(b"")
    async with serve_app(server.app()) as url, asset_client(url, KEY) as client:
        yield client


@pytest.fixture(params=[fake, over_http, from_a_bucket])
async def fetch(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: object) -> AsyncIterator[AssetSource]:
    opened: Callable[[Path], AbstractAsyncContextManager[AssetSource]] = request.param
    async with opened(tmp_path / "store") as fetch:
        yield fetch


@pytest.mark.parametrize("body", [BODY, b""])
async def test_size_and_suffix_are_known_before_the_bytes(fetch: AssetSource, tmp_path: Path, body: bytes) -> None:
    assert await fetch.get_info("ann", sha256_of(body)) == (len(body), ".mp4")
    await fetch.download("ann", sha256_of(body), tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == body


@pytest.mark.parametrize("had", [BODY[:1000], b"something else", BODY])
async def test_what_lies_there_already_does_no_harm(fetch: AssetSource, tmp_path: Path, had: bytes) -> None:
    (tmp_path / "got").write_bytes(had)
    await fetch.download("ann", sha256_of(BODY), tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == BODY


async def test_what_is_not_there_is_gone(fetch: AssetSource, tmp_path: Path) -> None:
    with pytest.raises(AssetGone):
        await fetch.get_info("ann", sha256_of(b"never uploaded"))
    with pytest.raises(AssetGone):
        await fetch.download("ann", sha256_of(b"never uploaded"), tmp_path / "got")
