"""Contract of every source of weights: the fake, a server by URL, and the edge. Then the server that misbehaves."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from msgspec import Struct
from msgspec.structs import replace

from edge.store.directory import open_directory
from runner.assets.client import asset_client
from runner.assets.volume_source import (
    UNKNOWN_SIZE_STEP_BYTES,
    FillFailed,
    FillFailure,
    HttpVolumeSource,
    VolumeSource,
    open_volume_source,
)
from schemas.endpoint_parts import VOLUMES_OWNER, VolumeFile
from tests.support.asset_server import KEY, AssetServer, sha256_of
from tests.support.http_server import serve_app
from tests.support.weights_server import FakeVolumeSource, WeightsServer, serve_weights

BODY = bytes(range(251)) * 4_000  # 1 MB
FILE = VolumeFile(path="unet.pth", sha256=sha256_of(BODY))


class Rig(Struct, frozen=True):
    """A source that has BODY under `file`."""

    source: VolumeSource
    file: VolumeFile


@asynccontextmanager
async def fake(_: Path) -> AsyncIterator[Rig]:
    yield Rig(FakeVolumeSource(BODY), FILE)


@asynccontextmanager
async def by_url(folder: Path) -> AsyncIterator[Rig]:
    async with open_server(folder) as (server, source):
        yield Rig(source, server.volume(unet=BODY).files[0])


@asynccontextmanager
async def from_the_edge(folder: Path) -> AsyncIterator[Rig]:
    async with open_directory(folder) as store:
        edge = AssetServer(store)
        await edge.add(BODY)
        async with (
            serve_app(edge.app()) as url,
            asset_client(url, KEY, 5.0) as client,
            open_volume_source(client) as source,
        ):
            yield Rig(source, FILE)
            assert {owner for _, owner, _ in edge.asked} == {VOLUMES_OWNER}


@asynccontextmanager
async def open_server(folder: Path) -> AsyncIterator[tuple[WeightsServer, HttpVolumeSource]]:
    """A weights server, and the source of a runner whose edge is away."""
    async with (
        serve_weights() as server,
        asset_client("http://127.0.0.1:9", KEY, 5.0) as edge,
        open_volume_source(edge) as source,
    ):
        yield server, source


@pytest.fixture(params=[fake, by_url, from_the_edge])
async def rig(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: object) -> AsyncIterator[Rig]:
    opened: Callable[[Path], AbstractAsyncContextManager[Rig]] = request.param
    async with opened(tmp_path / "store") as made:
        yield made


class Sizes(list[int]):
    """What a download said of the size."""

    async def note(self, size: int) -> None:
        self.append(size)


async def fetch(source: VolumeSource, file: VolumeFile, into: Path) -> Sizes:
    sizes = Sizes()
    await source.download(file, into, sizes.note)
    return sizes


async def failure(source: VolumeSource, file: VolumeFile, into: Path) -> FillFailed:
    with pytest.raises(FillFailed) as failed:
        await fetch(source, file, into)
    return failed.value


@pytest.mark.parametrize("had", [None, BODY[:1000], b"something else", BODY])
async def test_a_file_arrives_whatever_was_there(rig: Rig, tmp_path: Path, had: bytes | None) -> None:
    if had is not None:
        (tmp_path / "got").write_bytes(had)
    sizes = await fetch(rig.source, rig.file, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == BODY
    assert set(sizes) <= {len(BODY)}
    assert sizes or had == BODY


async def test_a_file_that_is_not_there(rig: Rig, tmp_path: Path) -> None:
    other = replace(rig.file, url=rig.file.url and f"{rig.file.url}-gone", sha256=sha256_of(b"gone"))
    assert (await failure(rig.source, other, tmp_path / "got")).code is FillFailure.NOT_FOUND


async def test_the_size_is_told_before_a_download_where_it_can_be_known(rig: Rig) -> None:
    assert await rig.source.find_size(rig.file) == len(BODY)
    gone = replace(rig.file, url=rig.file.url and f"{rig.file.url}-gone", sha256=sha256_of(b"gone"))
    assert await rig.source.find_size(gone) is None


async def test_no_room_ends_the_download(rig: Rig, tmp_path: Path) -> None:
    async def refuse(size: int) -> None:
        raise FillFailed(FillFailure.QUOTA, f"{size} bytes are too many")

    with pytest.raises(FillFailed, match=f"{len(BODY)} bytes are too many"):
        await rig.source.download(rig.file, tmp_path / "got", refuse)


@pytest.fixture
async def opened(tmp_path: Path, anyio_backend: object) -> AsyncIterator[tuple[WeightsServer, HttpVolumeSource]]:
    async with open_server(tmp_path) as made:
        yield made


Opened = tuple[WeightsServer, HttpVolumeSource]


async def test_a_cut_goes_on_where_it_was(opened: Opened, tmp_path: Path) -> None:
    server, source = opened
    file = server.volume(unet=BODY).files[0]
    server.cuts = [300_000, 200_000]
    await fetch(source, file, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == BODY
    starts = [0 if asked is None else int(asked.removeprefix("bytes=")[:-1]) for _, asked in server.requests]
    assert len(starts) == 3
    assert starts == sorted(starts)
    assert 0 < starts[1] <= 300_000 < starts[2] <= 500_000


async def test_a_server_that_brings_nothing_is_left_and_what_came_is_kept(opened: Opened, tmp_path: Path) -> None:
    server, source = opened
    file = server.volume(unet=BODY).files[0]
    server.cuts = [300_000, 0, 0]
    assert (await failure(source, file, tmp_path / "got")).code is FillFailure.INTERRUPTED
    kept = (tmp_path / "got").stat().st_size
    assert BODY.startswith((tmp_path / "got").read_bytes())
    server.cuts = []
    await fetch(source, file, tmp_path / "got")
    assert server.requests[-1][1] == f"bytes={kept}-"


async def test_a_server_without_ranges_begins_again(opened: Opened, tmp_path: Path) -> None:
    server, source = opened
    file = server.volume(unet=BODY).files[0]
    server.has_ranges, server.cuts = False, [300_000]
    await fetch(source, file, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == BODY
    server.cuts = [300_000, 300_000, 300_000]
    (tmp_path / "got").unlink()
    assert (await failure(source, file, tmp_path / "got")).code is FillFailure.INTERRUPTED  # not for ever


async def test_another_file_is_refused_and_nothing_of_it_is_kept(opened: Opened, tmp_path: Path) -> None:
    server, source = opened
    file = server.volume(unet=BODY).files[0]
    server.files["/unet"] = BODY[::-1]
    failed = await failure(source, file, tmp_path / "got")
    assert (failed.code, "it has the sha256" in failed.message) == (FillFailure.WRONG_DIGEST, True)
    assert not (tmp_path / "got").exists()
    assert len(server.requests) == 1
    server.files["/unet"] = BODY + b"more"
    failed = await failure(source, replace(file, bytes=len(BODY)), tmp_path / "got")
    assert (failed.code, failed.message) == (
        FillFailure.WRONG_DIGEST,
        f"it has {len(BODY) + 4} bytes and not {len(BODY)}",
    )


async def test_a_file_that_changed_half_way_begins_again_once(opened: Opened, tmp_path: Path) -> None:
    server, source = opened
    file = server.volume(unet=BODY).files[0]
    (tmp_path / "got").write_bytes(b"x" * 1000)
    await fetch(source, file, tmp_path / "got")
    assert [asked for _, asked in server.requests] == ["bytes=1000-", None]


@pytest.mark.parametrize("is_told", [False, True])
async def test_without_a_size_it_asks_for_room_as_it_grows(opened: Opened, tmp_path: Path, is_told: bool) -> None:
    server, source = opened
    server.tells_size = False
    file = replace(server.volume(unet=BODY).files[0], bytes=len(BODY) if is_told else None)
    assert set(await fetch(source, file, tmp_path / "got")) == {len(BODY) if is_told else UNKNOWN_SIZE_STEP_BYTES}
    server.files["/unet"] = BODY + b"more"
    (tmp_path / "got").unlink()
    assert (await failure(source, file, tmp_path / "got")).code is FillFailure.WRONG_DIGEST


@pytest.mark.parametrize(
    ("status", "code"),
    [(404, "not_found"), (410, "not_found"), (401, "refused"), (403, "refused"), (500, "failed"), (429, "failed")],
)
async def test_the_status_says_what_is_wrong(opened: Opened, tmp_path: Path, status: int, code: str) -> None:
    server, source = opened
    server.status = status
    failed = await failure(source, server.volume(unet=BODY).files[0], tmp_path / "got")
    assert (failed.code, failed.message) == (code, f"it answered {status}")


async def test_an_encoded_body_is_not_the_file(opened: Opened, tmp_path: Path) -> None:
    server, source = opened
    server.coding = "gzip"
    failed = await failure(source, server.volume(unet=BODY).files[0], tmp_path / "got")
    assert (failed.code, "it sent gzip" in failed.message) == (FillFailure.FAILED, True)


async def test_a_server_that_is_not_there(opened: Opened, tmp_path: Path) -> None:
    _, source = opened
    away = replace(FILE, url="http://127.0.0.1:9/unet.pth")
    assert (await failure(source, away, tmp_path / "got")).code is FillFailure.UNREACHABLE
    assert (await failure(source, FILE, tmp_path / "got")).code is FillFailure.UNREACHABLE  # the edge
