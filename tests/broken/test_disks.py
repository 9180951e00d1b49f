"""Disks that are full or may not be written: who needs one waits or is refused, and nobody else notices."""

import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from msgspec import Struct

from schemas.events import Released
from schemas.view import JobView
from tests.chaos import disk
from tests.e2e.conftest import Lit, lighted
from tests.e2e.installation import IMAGES, until
from tests.e2e.looking import ended, events, history, nothing_left, submit

MIB = 1 << 20
STORE_MB, HOST_MB = 4, 96
FRUGAL = "frugal"  # echo, and content with whatever disk there is


class Cramped(Struct, frozen=True):
    """An installation whose asset store and whose host's data folder are disks of their own, small ones."""

    lit: Lit
    store: Path
    host: Path

    def files(self) -> set[Path]:
        """What lies in the store, half-written files too."""
        return {path.relative_to(self.store) for path in self.store.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the installation, with the two disks mounted in it."""
    disk.needed()
    folder = tmp_path_factory.mktemp("cramped")
    shutil.copytree(IMAGES / "echo", folder / FRUGAL)
    declared = folder / FRUGAL / "endpoint.toml"
    text = declared.read_text().replace('name = "echo"', f'name = "{FRUGAL}"').replace("disk_mb = 64", "disk_mb = 0")
    declared.write_text(text)
    with ExitStack() as mounted:
        mounted.enter_context(disk.small(folder / "edge" / "assets", STORE_MB))
        mounted.enter_context(disk.small(folder / "gpu-1", HOST_MB))
        yield folder


@pytest.fixture(scope="module")
async def home(disks: Path, anyio_backend: object) -> AsyncIterator[Cramped]:
    async with lighted(disks, "process", None) as lit:
        await lit.installation.start_runner(
            endpoints=(IMAGES / "echo", disks / FRUGAL),
            LAMPLIGHTER_GPU__PLACEMENT__DISK_RESERVE_MB="0",
            LAMPLIGHTER_SLOTS="2",
        )

        async def offered() -> bool:
            return f'"{FRUGAL}"' in (await lit.ann._http.get("/v1/endpoints")).text

        await until(offered, 30)
        yield Cramped(lit, disks / "edge" / "assets", disks / "gpu-1")


@pytest.fixture
def cramped(home: Cramped) -> Iterator[Cramped]:
    yield home
    print(home.lit.installation.tail())  # noqa: T201 - shown by pytest when the test failed


async def put(lit: Lit, content: bytes) -> httpx.Response:
    return await lit.ann._http.put(f"/v1/assets/{hashlib.sha256(content).hexdigest()}", content=content)


async def done(lit: Lit, job: JobView) -> JobView:
    over = await ended(lit.ann, job.id)
    assert over.status == "succeeded", over.error
    return over


async def test_a_full_store_refuses_what_does_not_fit_keeps_no_half_of_it_and_runs_what_needs_no_file(
    cramped: Cramped,
):
    lit, before = cramped.lit, cramped.files()
    refused = await put(lit, os.urandom(2 * STORE_MB * MIB))
    assert (refused.status_code, refused.json()["code"]) == (507, "store_full")
    assert cramped.files() == before
    await done(lit, await submit(lit, text="without a file"))
    fits = await put(lit, b"this fits")
    assert fits.is_success
    await done(lit, await submit(lit, text="and is used", file=f"sha256:{fits.json()['sha256']}"))


async def test_a_store_that_cannot_be_written_refuses_files_and_is_read_as_before(cramped: Cramped):
    lit = cramped.lit
    taken = await put(lit, b"was here before")
    before = cramped.files()
    with disk.read_only(cramped.store / "tmp"):  # where every file begins
        refused = await put(lit, b"comes too late")
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
        assert "check its disk" in refused.json()["detail"]
        kept = await lit.ann._http.get(f"/v1/assets/{taken.json()['sha256']}")
        assert kept.content == b"was here before"
        job = await submit(lit, text="its log waits for the store")
    assert cramped.files() >= before
    await done(lit, job)
    assert (await put(lit, b"comes too late")).is_success


async def test_a_result_waits_for_room_in_the_store_and_is_not_computed_again(cramped: Cramped):
    lit = cramped.lit
    taken = await put(lit, b"a film")
    job = await submit(lit, file=f"sha256:{taken.json()['sha256']}", seconds=1)
    ballast = disk.fill(cramped.store)

    async def uploading() -> bool:
        row = await lit.bus.hosts.get("gpu-1")
        return row is not None and row.value.busy.uploading > 0

    try:
        await until(uploading, 30)
        other = await submit(lit, text="has no file")
        assert (await lit.ann.job(job.id)).status == "running"
    finally:
        ballast.unlink()
    await done(lit, job)
    await done(lit, other)
    assert not events(await history(lit, job.id), Released)


async def test_a_host_without_room_for_jobs_says_so_and_they_wait(cramped: Cramped):
    lit = cramped.lit
    ballast = disk.fill(cramped.host)
    try:

        async def says_so() -> bool:
            row = await lit.bus.hosts.get("gpu-1")
            return row is not None and row.value.cannot.get("echo") == "disk_short"

        await until(says_so, 40)
        waits = await submit(lit, text="waits for room")

        async def waiting() -> bool:
            return (await lit.ann.job(waits.id)).reason == "disk_short"

        await until(waiting, 20)
    finally:
        ballast.unlink()
    await done(lit, waits)
    assert not events(await history(lit, waits.id), Released)


async def test_a_host_without_room_for_an_input_gives_the_job_back_for_nothing(cramped: Cramped):
    lit = cramped.lit
    taken = await put(lit, os.urandom(2 * MIB))
    ballast = disk.fill(cramped.host)
    try:
        os.truncate(ballast, ballast.stat().st_size - MIB)
        job = await submit(lit, endpoint=FRUGAL, file=f"sha256:{taken.json()['sha256']}")

        async def released() -> list[Released]:
            return events(await history(lit, job.id), Released)

        first = (await until(released, 30))[0]
        assert (first.code, first.charged) == ("disk_full", False)
    finally:
        ballast.unlink()
    await done(lit, job)
    await nothing_left(lit)
