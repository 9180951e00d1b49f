"""Disks that are full or read-only: what needs them waits or is rejected, and nothing else is affected."""

import hashlib
import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx2
import pytest
from msgspec import Struct

from schemas.events import AttemptReleased
from schemas.host import VolumeStatus
from schemas.job_view import JobView
from tests.support import small_disk
from tests.support.asset_server import sha256_of
from tests.support.installation import IMAGES, RunningInstallation, run_new_installation
from tests.support.job_checks import events_of, read_history, submit_job, wait_until_clean, wait_until_ended
from tests.support.wait import wait_for
from tests.support.weights_server import serve_weights

MIB = 1 << 20
STORE_MB, HOST_MB, VOLUMES_MB = 4, 96, 8
FRUGAL = "frugal"  # echo without a disk requirement
WEIGHTED = "weighted"  # the same with a volume; the test that needs it writes it


class CrampedInstallation(Struct, frozen=True):
    """An installation with small disks of their own for the asset store, the host's data folder and its volumes.

    `endpoints`: a folder of endpoints, which the host reads again and again.
    """

    running: RunningInstallation
    store: Path
    host: Path
    volumes: Path
    endpoints: Path

    def files(self) -> set[Path]:
        """Return the files in the store, partial ones too."""
        return {path.relative_to(self.store) for path in self.store.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder of the installation, with the disks mounted in it."""
    small_disk.require_mounts()
    folder = tmp_path_factory.mktemp("cramped")
    write_endpoint(folder / "endpoints" / FRUGAL)
    with ExitStack() as mounted:
        mounted.enter_context(small_disk.mount_small_disk(folder / "edge" / "assets", STORE_MB))
        mounted.enter_context(small_disk.mount_small_disk(folder / "gpu-1", HOST_MB))
        mounted.enter_context(small_disk.mount_small_disk(folder / "gpu-1" / "volumes", VOLUMES_MB))
        yield folder


def write_endpoint(folder: Path, more: str = "") -> None:
    """Copy echo, without its disk requirement and with `more` in its endpoint.toml."""
    shutil.copytree(IMAGES / "echo", folder)
    declared = folder / "endpoint.toml"
    text = declared.read_text().replace('name = "echo"', f'name = "{folder.name}"')
    declared.write_text(text.replace("disk_mb = 64", "disk_mb = 0") + more)


@pytest.fixture(scope="module")
async def shared_installation(disks: Path, anyio_backend: object) -> AsyncIterator[CrampedInstallation]:
    async with run_new_installation(disks, "process", None) as running:
        await running.installation.start_runner(
            endpoints=(IMAGES / "echo", disks / "endpoints"),
            LAMPLIGHTER_GPU__PLACEMENT__DISK_RESERVE_MB="0",
            LAMPLIGHTER_PACE__IMAGE_S="0.5",
            LAMPLIGHTER_VOLUMES__RETRY_LEAST_S="0.5",
            LAMPLIGHTER_VOLUMES__RETRY_MOST_S="1",
            LAMPLIGHTER_SLOTS="2",
        )

        async def offered() -> bool:
            return f'"{FRUGAL}"' in (await running.ann._http.get("/v1/endpoints")).text

        await wait_for(offered, timeout_s=30)
        host = disks / "gpu-1"
        yield CrampedInstallation(running, disks / "edge" / "assets", host, host / "volumes", disks / "endpoints")


@pytest.fixture
def cramped(shared_installation: CrampedInstallation) -> Iterator[CrampedInstallation]:
    yield shared_installation
    print(shared_installation.running.installation.tail())  # noqa: T201 - shown by pytest when the test failed


async def put(running: RunningInstallation, content: bytes) -> httpx2.Response:
    return await running.ann._http.put(f"/v1/assets/{hashlib.sha256(content).hexdigest()}", content=content)


async def done(running: RunningInstallation, job: JobView) -> JobView:
    over = await wait_until_ended(running.ann, job.id)
    assert over.status == "succeeded", over.error
    return over


async def test_a_full_store_refuses_what_does_not_fit_keeps_no_half_of_it_and_runs_what_needs_no_file(
    cramped: CrampedInstallation,
):
    running, before = cramped.running, cramped.files()
    refused = await put(running, os.urandom(2 * STORE_MB * MIB))
    assert (refused.status_code, refused.json()["code"]) == (507, "store_full")
    assert cramped.files() == before
    await done(running, await submit_job(running, text="without a file"))
    fits = await put(running, b"this fits")
    assert fits.is_success
    await done(running, await submit_job(running, text="and is used", file=f"sha256:{fits.json()['sha256']}"))


async def test_a_store_that_cannot_be_written_refuses_files_and_is_read_as_before(cramped: CrampedInstallation):
    running = cramped.running
    taken = await put(running, b"was here before")
    before = cramped.files()
    with small_disk.remount_read_only(cramped.store / "tmp"):  # every file is first written here
        refused = await put(running, b"comes too late")
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
        assert "check its disk" in refused.json()["detail"]
        kept = await running.ann._http.get(f"/v1/assets/{taken.json()['sha256']}")
        assert kept.content == b"was here before"
        job = await submit_job(running, text="its log waits for the store")
    assert cramped.files() >= before
    await done(running, job)
    assert (await put(running, b"comes too late")).is_success


async def test_a_result_waits_for_room_in_the_store_and_is_not_computed_again(cramped: CrampedInstallation):
    running = cramped.running
    taken = await put(running, b"a film")
    job = await submit_job(running, file=f"sha256:{taken.json()['sha256']}", seconds=1)
    ballast = small_disk.fill_disk(cramped.store)

    async def uploading() -> bool:
        row = await running.bus.heartbeats.get("gpu-1")
        return row is not None and row.value.activity.uploading > 0

    try:
        await wait_for(uploading, timeout_s=30)
        other = await submit_job(running, text="has no file")
        assert (await running.ann.job(job.id)).status == "running"
    finally:
        ballast.unlink()
    await done(running, job)
    await done(running, other)
    assert not events_of(await read_history(running, job.id), AttemptReleased)


async def test_a_host_without_room_for_jobs_says_so_and_they_wait(cramped: CrampedInstallation):
    running = cramped.running
    ballast = small_disk.fill_disk(cramped.host)
    try:

        async def says_so() -> bool:
            row = await running.bus.heartbeats.get("gpu-1")
            return row is not None and row.value.unschedulable.get("echo") == "disk_short"

        await wait_for(says_so, timeout_s=40)
        waits = await submit_job(running, text="waits for room")

        async def waiting() -> bool:
            return (await running.ann.job(waits.id)).reason == "disk_short"

        await wait_for(waiting, timeout_s=20)
    finally:
        ballast.unlink()
    await done(running, waits)
    assert not events_of(await read_history(running, waits.id), AttemptReleased)


async def test_a_disk_that_is_full_in_the_middle_of_a_volume_keeps_no_half_of_it_and_stops_no_other_job(
    cramped: CrampedInstallation,
):
    running, body = cramped.running, os.urandom(5 * MIB)

    async def volume_when(failure: str | None, least_bytes: int) -> VolumeStatus | None:
        row = await running.bus.heartbeats.get("gpu-1")
        volumes = row.value.volumes if row else ()
        return next((it for it in volumes if it.failure == failure and (it.done_bytes or 0) >= least_bytes), None)

    async with serve_weights() as server:
        server.files, server.holds_at = {"/unet.pth": body}, 3 * MIB
        file = f'path = "unet.pth"\nurl = "{server.url}/unet.pth"\nsha256 = "{sha256_of(body)}"'
        mount = '[[volumes]]\nname = "weights"\npath = "/weights"'
        write_endpoint(cramped.endpoints / WEIGHTED, f"\n{mount}\n[[volumes.files]]\n{file}\n")
        await wait_for(partial(volume_when, None, 3 * MIB), timeout_s=60)
        ballast = small_disk.fill_disk(cramped.volumes)
        server.holds_at = None
        server.release.set()
        failed = await wait_for(partial(volume_when, "disk_full", 0), timeout_s=60)
        assert failed is not None
        assert re.search(
            r"\(No space left on device: .* are free in .*\): free some space on that host", failed.why or ""
        )
        kept = [path for name in ("files", "trees") for path in (cramped.volumes / name).iterdir()]
        assert [path for path in kept if path.suffix != ".part" or path.stat().st_size] == []  # a retry makes it again

        waits = await submit_job(running, endpoint=WEIGHTED, text="waits for its weights")

        async def says_why() -> bool:
            job = await running.ann.job(waits.id)
            return job.reason == "volume_missing" and "disk is full" in (job.message or "")

        await wait_for(says_why, timeout_s=60)
        await done(running, await submit_job(running, endpoint=FRUGAL, text="has no volume"))
        ballast.unlink()
        await done(running, waits)
    assert not events_of(await read_history(running, waits.id), AttemptReleased)


async def test_a_host_without_room_for_an_input_gives_the_job_back_for_nothing(cramped: CrampedInstallation):
    running = cramped.running
    taken = await put(running, os.urandom(2 * MIB))
    ballast = small_disk.fill_disk(cramped.host)
    try:
        os.truncate(ballast, ballast.stat().st_size - MIB)
        job = await submit_job(running, endpoint=FRUGAL, file=f"sha256:{taken.json()['sha256']}")

        async def released() -> list[AttemptReleased]:
            return events_of(await read_history(running, job.id), AttemptReleased)

        first = (await wait_for(released, timeout_s=30))[0]
        assert (first.code, first.charged) == ("disk_full", False)
    finally:
        ballast.unlink()
    await done(running, job)
    await wait_until_clean(running)
