"""Caches of owners: kept between jobs, never shared, bounded during a job and after it, removed for space or age."""

import os
import time
from functools import partial
from pathlib import Path

import anyio
import msgspec
import pytest

from runner.assets.container_folders import CacheStore, StoredCache
from runner.assets.volume_store import MountNote, write_mount_note
from runner.endpoints import LocalEndpoint
from runner.engines.port import MIB
from runner.execution.disk_usage import is_over, sweep_caches
from schemas.endpoint import Endpoint, Resources, Reuse
from schemas.endpoint_parts import Cache
from schemas.installation import DeletedOwner
from schemas.job import Job, Status
from tests.runner.warm_programs import reused_program
from tests.support.fake_engine import FakeContainer, Program
from tests.support.runner_environment import RunnerEnvironment, write_outputs
from tests.support.wait import wait_for

KERNELS = Cache(name="kernels", path="/kernels", max_mb=1, env=("TRITON_CACHE_DIR",))


def use_cache(megabytes: float = 0.0, *, waits: bool = False) -> Program:
    """Make a program that answers what it finds in its cache and adds a file of so many MiB."""

    async def run(box: FakeContainer) -> int:
        box.write(b'{"type":"progress","fraction":0.5}\n')
        folder = box.spec.mounts[0].source
        found = sorted(path.name for path in folder.iterdir())
        await anyio.Path(folder / f"kernel-{len(found)}").write_bytes(os.urandom(int(megabytes * MIB)))
        if waits:
            await anyio.sleep_forever()
        write_outputs(box, {}, {"found": found})
        return 0

    return run


@pytest.fixture
def world(tmp_path: Path) -> RunnerEnvironment:
    folder = tmp_path / "hosts"
    folder.mkdir()
    made = RunnerEnvironment(folder)
    made.programs["well"] = use_cache()
    offer(made)
    return made


def offer(world: RunnerEnvironment, reuse: Reuse | None = None) -> None:
    """Let the next runner offer two endpoints of the program."""
    world.kinds = {
        name: LocalEndpoint(
            Endpoint(
                name=name, image="well", caches=(KERNELS,), reuse=reuse, resources=Resources(disk_mb=0, memory_mb=16)
            ),
            world.folder,
        )
        for name in ("well", "other")
    }


def found_by(job: Job) -> list[str]:
    assert job.output is not None, job.error
    assert job.output.data is not None
    return list(job.output.data["found"])


async def run_job(world: RunnerEnvironment, id_: str, owner: str = "ann", endpoint: str = "well") -> list[str]:
    return found_by(await world.wait_until_ended(await world.submit(endpoint, id_, owner)))


async def test_a_cache_is_kept_for_its_owner_and_endpoint_and_for_nobody_else(world: RunnerEnvironment) -> None:
    async with world.run_runner():
        assert await run_job(world, "j1") == []
        assert await run_job(world, "j2") == ["kernel-0"]
        assert await run_job(world, "j3", owner="bob") == []
        assert await run_job(world, "j4", endpoint="other") == []
    async with world.run_runner("i2"):
        assert await run_job(world, "j5") == ["kernel-0", "kernel-1"]


async def test_the_container_may_write_to_it_and_gets_its_variables(world: RunnerEnvironment) -> None:
    world.programs["well"] = use_cache(waits=True)
    async with world.run_runner():
        await world.submit("well")
        (mount,) = (await world.wait_for_container()).spec.mounts
        assert (mount.target, mount.is_writable) == ("/kernels", True)
        assert mount.variables == ("LAMPLIGHTER_CACHE_KERNELS", "TRITON_CACHE_DIR")
        assert mount.source.parent.stat().st_mode & 0o777 == 0o700


async def test_one_that_holds_too_much_is_empty_for_the_next_job(world: RunnerEnvironment) -> None:
    world.programs["well"] = use_cache(0.7)
    async with world.run_runner():
        assert await run_job(world, "j1") == []
        assert await run_job(world, "j2") == ["kernel-0"]
        await world.wait_until_clean()  # a cache that a container has is not emptied
        assert await run_job(world, "j3") == []  # two kernels were more than max_mb


async def test_a_job_cannot_fill_the_disk_through_it(world: RunnerEnvironment) -> None:
    world.programs["well"] = use_cache(2.5, waits=True)
    async with world.run_runner():
        job = await world.wait_until_ended(await world.submit("well"))
        assert (job.status, job.error and job.error.code) == (Status.FAILED, "disk_exceeded")
        assert job.error is not None
        assert job.error.message.startswith("the job filled its cache kernels far beyond max_mb = 1: write less, or")

        async def emptied() -> bool:
            return not any(path.is_file() for path in world.caches_folder.rglob("*"))

        await wait_for(emptied)


async def test_the_next_runner_process_watches_the_cache_of_a_job_that_it_took_over(world: RunnerEnvironment) -> None:
    world.programs["well"] = use_cache(waits=True)
    key, box = await world.kill_runner_during_job("well")
    (mount,) = box.spec.mounts
    async with world.run_runner("i2"):
        (mount.source / "more").write_bytes(os.urandom(3 * MIB))
        job = await world.wait_until_ended(key)
        assert job.error is not None
        assert job.error.code == "disk_exceeded"


async def test_a_deleted_owner_s_caches_go_when_its_job_has_ended_and_nobody_else_s(world: RunnerEnvironment) -> None:
    async with world.run_runner():
        await run_job(world, "b1", owner="bob")
        await run_job(world, "a1", endpoint="other")
        world.programs["well"] = use_cache(waits=True)
        key = await world.submit("well", "a2", "ann")
        await world.wait_until_running(key)
        await world.edge.deleted_owners.put("ann", DeletedOwner(world.now()))

        async def left_of(count: int) -> bool:
            return len(caches_of(world, "ann")) == count

        await wait_for(partial(left_of, 1))  # the one that the job has
        await world.cancel(key)
        await wait_for(partial(left_of, 0))
        assert len(caches_of(world, "bob")) == 1


async def test_a_host_that_was_off_removes_them_before_its_first_job_and_only_once(world: RunnerEnvironment) -> None:
    async with world.run_runner():
        await run_job(world, "a1")
        await run_job(world, "b1", owner="bob")
    await world.edge.deleted_owners.put("ann", DeletedOwner(world.now()))
    async with world.run_runner("i2"):
        assert caches_of(world, "ann") == []
        assert await run_job(world, "a2") == []  # a new owner of the name
        assert await run_job(world, "b2", owner="bob") == ["kernel-0"]
    async with world.run_runner("i3"):
        assert await run_job(world, "a3") == ["kernel-0"]
        await world.edge.deleted_owners.put("ann", DeletedOwner(world.now()))  # deleted again

        async def gone() -> bool:
            return caches_of(world, "ann") == []

        await wait_for(gone)
        assert len(caches_of(world, "bob")) == 1


async def test_a_container_that_waits_for_a_deleted_owner_s_jobs_goes_too(world: RunnerEnvironment) -> None:
    async def work(box: FakeContainer, folder: Path) -> int:
        box.write(b'{"type":"progress","fraction":1}\n')
        (folder / "out" / "output.json").write_bytes(b"{}")
        return 0

    world.programs["well"] = reused_program(work)
    offer(world, Reuse(jobs=5, minutes=60))
    async with world.run_runner():
        await world.wait_until_ended(await world.submit("well", "a1", "ann"))

        async def waiting(count: int) -> bool:
            row = await world.edge.heartbeats.get("gpu-1")
            return row is not None and sum(pool.ready for pool in row.value.warm) == count

        await wait_for(partial(waiting, 1))
        await world.edge.deleted_owners.put("bob", DeletedOwner(world.now()))
        await world.edge.deleted_owners.put("ann", DeletedOwner(world.now()))
        await wait_for(partial(waiting, 0))

        async def gone() -> bool:
            return caches_of(world, "ann") == []

        await wait_for(gone)


def caches_of(world: RunnerEnvironment, owner: str) -> list[str]:
    """Return the names of the owner's caches on the disk."""
    return [path.name for path in world.caches_folder.glob(f"{owner}.*")]


DAY_S = 86_400
NOW = 1_800_000_000.0


def stored(store: CacheStore, owner: str, megabytes: float, days: float, max_mb: int = 10) -> StoredCache:
    """Make a cache that was used so many days ago."""
    cache = store.open(f"{owner}.lips.0123456789abcdef.kernels.{max_mb}", is_used=False)
    (cache.data / "kernel").write_bytes(os.urandom(int(megabytes * MIB)))
    os.utime(cache.folder, (NOW - days * DAY_S, NOW - days * DAY_S))
    return cache


@pytest.fixture
def store(tmp_path: Path) -> CacheStore:
    return CacheStore(tmp_path / "caches", is_over)


def left(store: CacheStore) -> list[str]:
    return [cache.folder.name.split(".")[0] for cache in store.list()]


def test_the_oldest_use_goes_first_and_what_a_container_has_stays(store: CacheStore, tmp_path: Path) -> None:
    for owner, days in (("ann", 3.0), ("bob", 5.0), ("eve", 4.0), ("joe", 1.0)):
        stored(store, owner, 1, days)
    bob = next(cache for cache in store.list() if cache.folder.name.startswith("bob"))
    write_mount_note(tmp_path / "jobs" / "bob.j.1.1", MountNote(caches=(bob.folder.name,)))
    done = sweep_caches(store, tmp_path / "jobs", NOW - 30 * DAY_S, int(3.5 * MIB))
    assert left(store) == ["ann", "bob", "joe"]
    assert [why for _, why in done] == ["total"]
    assert sweep_caches(store, tmp_path / "jobs", NOW - 30 * DAY_S, 0)
    assert left(store) == ["bob"]


def test_one_that_was_not_used_for_long_goes_whoever_it_was(store: CacheStore, tmp_path: Path) -> None:
    for owner, days in (("ann", 29.0), ("bob", 31.0)):
        stored(store, owner, 0.01, days)
    sweep_caches(store, tmp_path / "jobs", NOW - 30 * DAY_S, 100 * MIB)
    assert left(store) == ["ann"]


def test_one_over_its_limit_is_emptied_and_closed_and_keeps_its_age(store: CacheStore, tmp_path: Path) -> None:
    cache = stored(store, "ann", 2, 3.0, max_mb=1)
    cache.folder.chmod(0o710)
    assert sweep_caches(store, tmp_path / "jobs", 0.0, 100 * MIB) == [(cache.folder.name, "over_limit")]
    (kept,) = store.list()
    assert (kept.used_at, kept.name, kept.max_mb) == (NOW - 3 * DAY_S, "kernels", 1)
    assert (list(kept.folder.iterdir()), kept.folder.stat().st_mode & 0o777) == ([], 0o700)
    assert sweep_caches(store, tmp_path / "jobs", 0.0, 100 * MIB) == []


def test_links_and_deep_folders_of_a_job_are_removed_and_not_followed(store: CacheStore, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("not the job's")
    cache = stored(store, "ann", 0, 1.0, max_mb=1)
    (cache.data / "link").symlink_to(tmp_path)
    deep = cache.data
    for _ in range(120):
        deep /= "d"
        deep.mkdir()
    assert is_over(cache)
    sweep_caches(store, tmp_path / "jobs", 0.0, 100 * MIB)
    assert not cache.data.exists()
    assert (tmp_path / "outside").read_text() == "not the job's"
    assert store.open(cache.folder.name, is_used=False).data.is_dir()
    assert time.time() - cache.folder.stat().st_mtime < DAY_S


async def test_a_kept_container_has_the_cache_of_its_owner_and_goes_when_it_holds_too_much(
    world: RunnerEnvironment,
) -> None:
    async def work(box: FakeContainer, folder: Path) -> int:
        box.write(b'{"type":"progress","fraction":1}\n')
        cache = box.spec.mounts[0].source
        found = sorted(path.name for path in cache.iterdir())
        await anyio.Path(cache / f"kernel-{len(found)}").write_bytes(os.urandom(700_000))
        (folder / "out" / "output.json").write_bytes(msgspec.json.encode({"found": found, "box": box.handle}))
        return 0

    world.programs["well"] = reused_program(work)
    offer(world, Reuse())
    async with world.run_runner():
        jobs = [
            await world.wait_until_ended(await world.submit("well", f"j{number}", owner))
            for number, owner in enumerate(["ann", "ann", "bob", "ann"])
        ]
    assert [found_by(job) for job in jobs] == [[], ["kernel-0"], [], []]
    boxes = [job.output.data["box"] for job in jobs if job.output and job.output.data]
    assert boxes[0] == boxes[1]
    assert len(set(boxes)) == 3
