"""The result in the shared folder: whole, of this job, and not forgotten over a restart."""

import os
from pathlib import Path

import anyio

from edge.facades.heygem import result_export as module
from edge.facades.heygem.result_export import ExportState, ResultExporter
from edge.owners.quotas import OwnerQuotaOverride
from schemas.ids import JobKey
from tests.edge.facades.heygem.conftest import OWNER, HeygemClient
from tests.support.wait import wait_until

KEY = JobKey(OWNER, "code-1")


def lies_at(place: Path) -> bool:
    return place.is_file() and place.read_bytes() == b"the video"


async def until_there(place: Path) -> None:
    async def there() -> bool:
        return lies_at(place)

    await wait_until(there)


def anew(desk: HeygemClient) -> ResultExporter:
    """Another life of the edge, with the notes of the one before."""
    world = desk.world
    return ResultExporter(
        desk.root, world.index._path.parent / "placing", world.bus.job_store, world.store, world.index
    )


async def test_what_an_earlier_life_accepted_is_placed_by_the_next(desk: HeygemClient, monkeypatch):
    """The edge dies after the submit: this desk's placing is told of nothing any more."""
    await desk.submit()
    monkeypatch.setattr(desk.placing, "_on_job_changes", lambda steps: None)
    desk.placing._expected.clear()
    await desk.finish()
    place = desk.root / "temp" / "code-1-r.mp4"
    assert not place.exists()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anew(desk).run)
        await until_there(place)
        tasks.cancel_scope.cancel()


async def test_notes_go_when_the_result_is_there_or_the_job_is_not(desk: HeygemClient):
    notes = desk.world.index._path.parent / "placing"

    async def empty() -> bool:
        return not list(notes.iterdir())

    async with desk.placing.expect_result(JobKey(OWNER, "never-made")):
        pass
    await desk.submit()
    assert f"{OWNER}.code-1" in {path.name for path in notes.iterdir()}  # the other's may be looked into already
    await desk.finish()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anew(desk).run)
        await wait_until(empty)
        tasks.cancel_scope.cancel()
    assert (desk.root / "temp" / "code-1-r.mp4").read_bytes() == b"the video"


async def test_a_submit_that_is_refused_leaves_no_note(desk: HeygemClient):
    desk.world.limits[OWNER] = OwnerQuotaOverride(waiting=1)
    await desk.submit(code="one")
    assert (await desk.submit(code="two"))["code"] == 10001
    notes = desk.world.index._path.parent / "placing"

    async def only_the_first() -> bool:
        return [path.name for path in notes.iterdir()] == [f"{OWNER}.one"]

    await wait_until(only_the_first)


async def test_an_older_file_of_the_name_is_replaced_and_a_newer_is_the_clients(desk: HeygemClient):
    place = desk.root / "temp" / "code-1-r.mp4"
    place.write_bytes(b"of an earlier job")
    os.utime(place, (1, 1))
    await desk.submit()
    done = await desk.finish()
    assert (await desk.query())["data"]["status"] == 2
    assert place.read_bytes() == b"the video"
    assert place.stat().st_mtime_ns == module._ended_ns(done)
    place.write_bytes(b"edited")
    later = done.finished_at.timestamp() + 60
    os.utime(place, (later, later))
    assert (await desk.query())["data"]["status"] == 2
    assert place.read_bytes() == b"edited"


async def test_halves_that_dead_edges_left_are_in_nobodys_way_and_go(desk: HeygemClient):
    half = desk.root / "temp" / f".{OWNER}.{os.getpid()}.code-1-r.mp4"
    half.write_bytes(b"half")
    neighbour = desk.root / "temp" / f".{OWNER}.1.code-10-r.mp4"
    neighbour.write_bytes(b"of another job")
    await desk.submit()
    await desk.finish()
    assert (await desk.query())["data"]["status"] == 2
    assert (desk.root / "temp" / "code-1-r.mp4").read_bytes() == b"the video"
    assert (half.exists(), neighbour.exists()) == (False, True)


async def test_two_edges_that_place_the_same_result_do_not_keep_each_other_from_it(desk: HeygemClient):
    async with anyio.create_task_group() as tasks:
        other = anew(desk)
        tasks.start_soon(other.run)
        async with other.expect_result(KEY):
            await desk.submit()
        await desk.finish()
        await until_there(desk.root / "temp" / "code-1-r.mp4")

        async def no_halves() -> bool:
            return not list((desk.root / "temp").glob(".*"))

        await wait_until(no_halves)
        tasks.cancel_scope.cancel()


async def test_a_folder_that_cannot_be_written_keeps_the_job_from_being_told_as_done(desk: HeygemClient, monkeypatch):
    """A folder stands where the file should: as good as a full or absent disk, and root is not kept out by rights."""
    monkeypatch.setattr(module, "COPY_WAIT_TIMEOUT_S", 0.1)
    monkeypatch.setattr(module, "EXPORT_RETRY_INTERVAL_S", 0.1)
    in_the_way = desk.root / "temp" / "code-1-r.mp4"
    in_the_way.mkdir()
    os.utime(in_the_way, (1, 1))
    await desk.submit()
    await desk.finish()
    storing = (await desk.query())["data"]
    assert (storing["status"], storing["progress"], storing["result"]) == (1, 99, "")
    in_the_way.rmdir()
    await until_there(in_the_way)
    assert (await desk.query())["data"]["status"] == 2


async def test_a_temp_that_leads_out_is_not_written_through(desk: HeygemClient, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "COPY_WAIT_TIMEOUT_S", 0.1)
    await desk.submit()
    outside = tmp_path / "outside"
    (desk.root / "temp").rename(outside)
    (desk.root / "temp").symlink_to(outside)
    await desk.finish()
    assert (await desk.query())["data"]["status"] == 1
    assert not (outside / "code-1-r.mp4").exists()


async def test_a_link_at_the_place_is_replaced_not_written_through(desk: HeygemClient, tmp_path: Path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    os.utime(victim, (1, 1))
    (desk.root / "temp" / "code-1-r.mp4").symlink_to(victim)
    await desk.submit()
    await desk.finish()
    assert (await desk.query())["data"]["status"] == 2
    assert victim.read_bytes() == b"precious"


async def test_bytes_that_were_deleted_are_told_as_lost_unless_they_lie_there(desk: HeygemClient):
    await desk.submit()
    job = await desk.finish()
    assert (await desk.query())["data"]["status"] == 2
    assert job.output is not None
    await desk.world.store.trash(job.output.files[0].sha256)
    assert (await desk.query())["data"]["status"] == 2
    (desk.root / "temp" / "code-1-r.mp4").unlink()
    assert await desk.placing.export_state(job) is ExportState.MISSING
    assert (await desk.query())["data"]["status"] == 3


async def test_every_code_makes_a_name(desk: HeygemClient):
    for code in ("a", "-", "_", "x" * 64):
        await desk.submit(code=code)
        await desk.finish(code)
        assert (await desk.query(code))["data"]["result"] == f"/{code}-r.mp4"
        assert lies_at(desk.root / "temp" / f"{code}-r.mp4")


async def test_the_name_is_as_durable_as_the_bytes(desk: HeygemClient, monkeypatch):
    """Before the note goes that would have it placed again."""
    synced: list[str] = []
    monkeypatch.setattr(
        module.os, "fsync", lambda handle: synced.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
    )
    await desk.submit()
    await desk.finish()
    await until_there(desk.root / "temp" / "code-1-r.mp4")

    async def settled() -> bool:
        return JobKey(OWNER, "code-1") not in desk.placing._expected

    await wait_until(settled)
    folder = str((desk.root / "temp").resolve())
    assert [Path(name).name.startswith(f".{OWNER}.") for name in synced if name.startswith(folder)] == [True, False]
    assert folder in synced
