"""Results in the shared folder: complete, of the right job, and exported after a restart too."""

import os
from pathlib import Path

import anyio

from edge.facades.heygem import facade as module
from edge.facades.heygem.facade import ExportState, ResultExporter
from edge.owners.quotas import OwnerQuotaOverride
from schemas.job import JobKey
from tests.edge.facades.heygem.conftest import OWNER, HeygemClient
from tests.support.wait import wait_for

KEY = JobKey(OWNER, "code-1")


def lies_at(place: Path) -> bool:
    return place.is_file() and place.read_bytes() == b"the video"


async def until_there(place: Path) -> None:
    async def there() -> bool:
        return lies_at(place)

    await wait_for(there)


def anew(heygem: HeygemClient) -> ResultExporter:
    """Return the exporter of a restarted edge, with the notes of the previous process."""
    world = heygem.world
    return ResultExporter(
        heygem.root, world.index._path.parent / "placing", world.bus.job_store, world.store, world.index
    )


async def test_what_an_earlier_life_accepted_is_placed_by_the_next(heygem: HeygemClient, monkeypatch):
    """The edge crashes after the submit: its exporter sees no more changes."""
    await heygem.submit()
    monkeypatch.setattr(heygem.placing, "_on_job_changes", lambda steps: None)
    heygem.placing._expected.clear()
    await heygem.finish()
    place = heygem.root / "temp" / "code-1-r.mp4"
    assert not place.exists()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anew(heygem).run)
        await until_there(place)
        tasks.cancel_scope.cancel()


async def test_notes_go_when_the_result_is_there_or_the_job_is_not(heygem: HeygemClient):
    notes = heygem.world.index._path.parent / "placing"

    async def empty() -> bool:
        return not list(notes.iterdir())

    async with heygem.placing.expect_result(JobKey(OWNER, "never-made")):
        pass
    await heygem.submit()
    assert f"{OWNER}.code-1" in {path.name for path in notes.iterdir()}  # the other's may be looked into already
    await heygem.finish()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anew(heygem).run)
        await wait_for(empty)
        tasks.cancel_scope.cancel()
    assert (heygem.root / "temp" / "code-1-r.mp4").read_bytes() == b"the video"


async def test_a_submit_that_is_refused_leaves_no_note(heygem: HeygemClient):
    heygem.world.limits[OWNER] = OwnerQuotaOverride(waiting=1)
    await heygem.submit(code="one")
    assert (await heygem.submit(code="two"))["code"] == 10001
    notes = heygem.world.index._path.parent / "placing"

    async def only_the_first() -> bool:
        return [path.name for path in notes.iterdir()] == [f"{OWNER}.one"]

    await wait_for(only_the_first)


async def test_an_older_file_of_the_name_is_replaced_and_a_newer_is_the_clients(heygem: HeygemClient):
    place = heygem.root / "temp" / "code-1-r.mp4"
    place.write_bytes(b"of an earlier job")
    os.utime(place, (1, 1))
    await heygem.submit()
    done = await heygem.finish()
    assert (await heygem.query())["data"]["status"] == 2
    assert place.read_bytes() == b"the video"
    assert place.stat().st_mtime_ns == module._ended_ns(done)
    place.write_bytes(b"edited")
    later = done.finished_at.timestamp() + 60
    os.utime(place, (later, later))
    assert (await heygem.query())["data"]["status"] == 2
    assert place.read_bytes() == b"edited"


async def test_halves_that_dead_edges_left_are_in_nobodys_way_and_go(heygem: HeygemClient):
    half = heygem.root / "temp" / f".{OWNER}.{os.getpid()}.code-1-r.mp4"
    half.write_bytes(b"half")
    neighbour = heygem.root / "temp" / f".{OWNER}.1.code-10-r.mp4"
    neighbour.write_bytes(b"of another job")
    await heygem.submit()
    await heygem.finish()
    assert (await heygem.query())["data"]["status"] == 2
    assert (heygem.root / "temp" / "code-1-r.mp4").read_bytes() == b"the video"
    assert (half.exists(), neighbour.exists()) == (False, True)


async def test_two_edges_that_place_the_same_result_do_not_keep_each_other_from_it(heygem: HeygemClient):
    async with anyio.create_task_group() as tasks:
        other = anew(heygem)
        tasks.start_soon(other.run)
        async with other.expect_result(KEY):
            await heygem.submit()
        await heygem.finish()
        await until_there(heygem.root / "temp" / "code-1-r.mp4")

        async def no_halves() -> bool:
            return not list((heygem.root / "temp").glob(".*"))

        await wait_for(no_halves)
        tasks.cancel_scope.cancel()


async def test_a_folder_that_cannot_be_written_keeps_the_job_from_being_reported_as_done(
    heygem: HeygemClient, monkeypatch
):
    """A folder blocks the path of the file. This fails like a full disk, and permissions would not stop root."""
    monkeypatch.setattr(module, "COPY_WAIT_TIMEOUT_S", 0.1)
    monkeypatch.setattr(module, "EXPORT_RETRY_INTERVAL_S", 0.1)
    in_the_way = heygem.root / "temp" / "code-1-r.mp4"
    in_the_way.mkdir()
    os.utime(in_the_way, (1, 1))
    await heygem.submit()
    await heygem.finish()
    storing = (await heygem.query())["data"]
    assert (storing["status"], storing["progress"], storing["result"]) == (1, 99, "")
    in_the_way.rmdir()
    await until_there(in_the_way)
    assert (await heygem.query())["data"]["status"] == 2


async def test_a_temp_that_leads_out_is_not_written_through(heygem: HeygemClient, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "COPY_WAIT_TIMEOUT_S", 0.1)
    await heygem.submit()
    outside = tmp_path / "outside"
    (heygem.root / "temp").rename(outside)
    (heygem.root / "temp").symlink_to(outside)
    await heygem.finish()
    assert (await heygem.query())["data"]["status"] == 1
    assert not (outside / "code-1-r.mp4").exists()


async def test_a_link_at_the_place_is_replaced_not_written_through(heygem: HeygemClient, tmp_path: Path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    os.utime(victim, (1, 1))
    (heygem.root / "temp" / "code-1-r.mp4").symlink_to(victim)
    await heygem.submit()
    await heygem.finish()
    assert (await heygem.query())["data"]["status"] == 2
    assert victim.read_bytes() == b"precious"


async def test_bytes_that_were_deleted_are_reported_as_lost_unless_they_lie_there(heygem: HeygemClient):
    await heygem.submit()
    job = await heygem.finish()
    assert (await heygem.query())["data"]["status"] == 2
    assert job.output is not None
    await heygem.world.store.trash(job.output.files[0].sha256)
    assert (await heygem.query())["data"]["status"] == 2
    (heygem.root / "temp" / "code-1-r.mp4").unlink()
    assert await heygem.placing.export_state(job) is ExportState.MISSING
    assert (await heygem.query())["data"]["status"] == 3


async def test_every_code_makes_a_name(heygem: HeygemClient):
    for code in ("a", "-", "_", "x" * 64):
        await heygem.submit(code=code)
        await heygem.finish(code)
        assert (await heygem.query(code))["data"]["result"] == f"/{code}-r.mp4"
        assert lies_at(heygem.root / "temp" / f"{code}-r.mp4")


async def test_the_name_is_as_durable_as_the_bytes(heygem: HeygemClient, monkeypatch):
    """The folder is synced before the note is removed, because the note would repeat the export."""
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(str(Path(f"/proc/self/fd/{handle}").readlink())))
    await heygem.submit()
    await heygem.finish()
    await until_there(heygem.root / "temp" / "code-1-r.mp4")

    async def settled() -> bool:
        return JobKey(OWNER, "code-1") not in heygem.placing._expected

    await wait_for(settled)
    folder = str((heygem.root / "temp").resolve())
    assert [Path(name).name.startswith(f".{OWNER}.") for name in synced if name.startswith(folder)] == [True, False]
    assert folder in synced
