"""The runner's asset client against a real server that interrupts, sends wrong bytes and refuses."""

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx2
import pytest

from edge.store.directory import open_directory
from runner.assets.cache import InputCache
from runner.assets.client import (
    AssetClient,
    AssetRefused,
    EdgeAssetTransfer,
    WrongDigest,
    asset_client,
    filename_suffix,
)
from runner.assets.port import AssetGone, EdgeUnavailable, NotHeld, NotPlainFile
from tests.support.asset_server import KEY, LIMIT, AssetServer, sha256_of
from tests.support.http_server import serve_app

BODY = bytes(range(251)) * 20_000  # 5 MB


@pytest.fixture
async def edge(tmp_path: Path, anyio_backend: object) -> AsyncIterator[AssetServer]:
    async with open_directory(tmp_path / "store") as store:
        yield AssetServer(store)


@pytest.fixture
async def client(edge: AssetServer) -> AsyncIterator[AssetClient]:
    async with serve_app(edge.app()) as url, asset_client(url, KEY, 5.0) as client:
        yield client


async def test_an_asset_is_asked_for_in_its_owners_name(edge: AssetServer, client: AssetClient, tmp_path: Path) -> None:
    sha256 = await edge.add(BODY)
    assert (await client.get_info("ann", sha256)).bytes == len(BODY)
    await client.download("ann", sha256, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == BODY
    assert edge.asked == [("HEAD", "ann", None), ("GET", "ann", None)]


def _link(path: Path) -> None:
    (path.parent / "secret").write_bytes(b"not the job's")
    path.symlink_to(path.parent / "secret")


NOT_PLAIN: dict[str, Callable[[Path], None]] = {
    "link": _link,
    "fifo": os.mkfifo,
    "folder": Path.mkdir,
    "gone": lambda path: None,
}


@pytest.mark.parametrize("make", NOT_PLAIN.values(), ids=NOT_PLAIN)
async def test_only_a_plain_file_is_brought_and_no_link_is_followed(
    edge: AssetServer, client: AssetClient, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "out")
    with pytest.raises(NotPlainFile, match="out"):
        await client.upload("ann", tmp_path / "out", "out.mp4")
    assert edge.asked == []


class Elsewhere(httpx2.AsyncBaseTransport):
    """Redirects to `location` after it has read the request, as a server does."""

    def __init__(self, location: str) -> None:
        self._location = location

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        assert isinstance(request.stream, httpx2.AsyncByteStream)
        async for _ in request.stream:
            continue
        there = request.url.path == self._location == "/there"
        return httpx2.Response(404 if there else 308, headers={"Location": self._location})


@pytest.mark.parametrize("location", ["/here/", "/there"])
async def test_an_edge_that_leads_elsewhere_is_away(tmp_path: Path, location: str) -> None:
    """Redirect in a circle, or, as a proxy that requires https, to a place where an upload would start again."""
    film = tmp_path / "film.mp4"
    film.write_bytes(b"film")
    leads = Elsewhere(location)
    async with httpx2.AsyncClient(base_url="http://edge", follow_redirects=True, transport=leads) as http:
        with pytest.raises(EdgeUnavailable):
            await AssetClient(http).upload("ann", film, "film.mp4")
        if location == "/here/":
            with pytest.raises(EdgeUnavailable):
                await AssetClient(http).download("ann", sha256_of(b"film"), tmp_path / "got")


async def test_a_cut_download_goes_on_where_it_was(edge: AssetServer, client: AssetClient, tmp_path: Path) -> None:
    sha256 = await edge.add(BODY)
    edge.cuts = [3_000_000, 1_500_000]
    await client.download("ann", sha256, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == BODY
    first, second, third = edge.gets()
    assert first is None
    assert 0 < int(second[6:-1]) < int(third[6:-1]) < len(BODY)


async def test_when_no_try_brings_bytes_the_next_call_goes_on(
    edge: AssetServer, client: AssetClient, tmp_path: Path
) -> None:
    sha256 = await edge.add(BODY)
    edge.cuts = [3_000_000, 0]
    with pytest.raises(EdgeUnavailable, match="not reachable"):
        await client.download("ann", sha256, tmp_path / "got")
    had = (tmp_path / "got").stat().st_size
    assert had > 0
    await client.download("ann", sha256, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == BODY
    assert edge.gets()[-1] == f"bytes={had}-"


@pytest.mark.parametrize("had", [BODY, b"another file", BODY + b"and more"])
async def test_whatever_lay_there_the_right_bytes_arrive(
    edge: AssetServer, client: AssetClient, tmp_path: Path, had: bytes
) -> None:
    sha256 = await edge.add(BODY)
    (tmp_path / "got").write_bytes(had)
    await client.download("ann", sha256, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == BODY


async def test_damaged_once_is_fetched_again_damaged_twice_is_reported(
    edge: AssetServer, client: AssetClient, tmp_path: Path
) -> None:
    sha256 = await edge.add(BODY)
    edge.lies = [b"noise"]
    await client.download("ann", sha256, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == BODY
    edge.lies = [b"noise", b"more noise"]
    (tmp_path / "got").unlink()
    with pytest.raises(WrongDigest, match="upload it again"):
        await client.download("ann", sha256, tmp_path / "got")
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, AssetGone),
        (410, AssetGone),
        (503, EdgeUnavailable),
        (507, EdgeUnavailable),
        (401, EdgeUnavailable),
        (403, NotHeld),
    ],
)
async def test_answers_become_our_words(
    edge: AssetServer, client: AssetClient, tmp_path: Path, status: int, error: type[Exception]
) -> None:
    edge.status = status
    with pytest.raises(error, match=str(status)):
        await client.get_info("ann", sha256_of(BODY))
    with pytest.raises(error, match=str(status)):
        await client.download("ann", sha256_of(BODY), tmp_path / "got")


async def test_an_edge_that_is_not_there_is_away(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(BODY)
    async with asset_client("http://127.0.0.1:1", KEY, 5.0) as client:
        with pytest.raises(EdgeUnavailable):
            await client.get_info("ann", sha256_of(BODY))
        with pytest.raises(EdgeUnavailable):
            await client.download("ann", sha256_of(BODY), tmp_path / "got")
        with pytest.raises(EdgeUnavailable):
            await client.upload("ann", tmp_path / "out", "out.mp4")


async def test_an_output_is_uploaded_under_its_digest(edge: AssetServer, client: AssetClient, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(BODY)
    file = await client.upload("ann", tmp_path / "out", "结果.mp4")
    assert (file.name, file.sha256, file.bytes, file.media_type) == (
        "结果.mp4",
        sha256_of(BODY),
        len(BODY),
        "video/mp4",
    )
    assert edge.names == {sha256_of(BODY): "结果.mp4"}
    assert edge.asked == [("PUT", "ann", None)]
    assert await edge.store.stat(sha256_of(BODY)) is not None


@pytest.mark.parametrize(
    ("status", "error"), [(413, AssetRefused), (400, AssetRefused), (422, EdgeUnavailable), (507, EdgeUnavailable)]
)
async def test_an_upload_is_refused_for_good_or_for_now(
    edge: AssetServer, client: AssetClient, tmp_path: Path, status: int, error: type[Exception]
) -> None:
    (tmp_path / "out").write_bytes(b"small")
    edge.status = status
    with pytest.raises(error, match=str(status)):
        await client.upload("ann", tmp_path / "out", "out.mp4")


async def test_a_file_over_the_edges_limit_is_refused_for_good(
    edge: AssetServer, client: AssetClient, tmp_path: Path
) -> None:
    with (tmp_path / "out").open("wb") as file:
        file.truncate(LIMIT + 1)
    with pytest.raises(AssetRefused, match="413"):
        await client.upload("ann", tmp_path / "out", "out.mp4")


async def test_a_jobs_files_come_through_the_cache_and_go_to_the_edge(
    edge: AssetServer, client: AssetClient, tmp_path: Path
) -> None:
    sha256 = await edge.add(BODY)
    supplies = EdgeAssetTransfer(InputCache(tmp_path / "cache", 1 << 30, client), client)
    for name in ("1", "2"):
        await supplies.stage("ann", sha256, tmp_path / name)
    file = await supplies.upload("ann", tmp_path / "1", "copy.mp4")
    assert (tmp_path / "2").read_bytes() == BODY
    assert file.sha256 == sha256
    assert [method for method, _, _ in edge.asked] == ["HEAD", "GET", "PUT"]


@pytest.mark.parametrize(
    ("disposition", "suffix"),
    [
        ('inline; filename="a.mp4"', ".mp4"),
        ("inline; filename*=utf-8''%E6%BC%94%20.tar.gz", ".gz"),
        ('attachment; filename="a.WAV"; size=3', ".WAV"),
        ('inline; filename="noname"', ""),
        ('inline; filename="a.toolongforthis"', ""),
        ("inline; filename*=utf-8''a.m%2Fp", ""),
        ('inline; filename="a./x"', ""),
        ("", ""),
    ],
)
def test_only_a_safe_suffix_is_taken(disposition: str, suffix: str) -> None:
    assert filename_suffix(disposition) == suffix
