"""M4: a job uses more disk than its endpoint says, by bytes, files or holes in outputs, and is cancelled meanwhile."""

import re
import sys
from pathlib import Path

import anyio
import httpx2
import pytest
from msgspec.structs import replace

from runner.assets.client import AssetClient, AssetRefused, asset_client
from runner.engines.port import MIB, ContainerIdentity, ContainerLimits, ContainerSpec
from runner.engines.process import ProcessEngine
from runner.execution import disk_usage
from runner.execution.disk_usage import (
    DEPTH_LIMIT,
    ENTRIES_PER_MIB,
    DiskLimit,
    DiskUse,
    DiskWatch,
    disk_limit,
    measure_disk_use,
)
from runner.execution.job_files import OutputRefused, collect_outputs
from schemas.endpoint import Timeouts
from schemas.job import Blame
from tests.attack.conftest import ENDPOINT_DIRS
from tests.support.fake_engine import FakeContainer
from tests.support.installation import IMAGES, RunningInstallation
from tests.support.job_checks import submit_job, wait_until_clean, wait_until_ended
from tests.support.runner_environment import RunnerEnvironment, wait_with_deadline, write_outputs

TIB = 1 << 40
BLOCK = b"x" * MIB


def sparse(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_bytes_are_those_allocated_and_entries_are_all_names(tmp_path: Path) -> None:
    (tmp_path / "tmp" / "a").mkdir(parents=True)
    (tmp_path / "tmp" / "a" / "file").write_bytes(BLOCK)
    (tmp_path / "tmp" / "again").hardlink_to(tmp_path / "tmp" / "a" / "file")
    sparse(tmp_path / "tmp" / "hole", TIB)
    use = measure_disk_use(tmp_path)
    assert MIB <= use.bytes < MIB + 64 * 1024
    assert use.entries == 5


def test_inputs_are_the_host_s_and_links_lead_nowhere(tmp_path: Path) -> None:
    for part in ("in", "tmp"):
        (tmp_path / "job" / part).mkdir(parents=True)
    for place in (tmp_path / "job" / "in" / "video.mp4", tmp_path / "else where"):
        place.write_bytes(BLOCK)
    (tmp_path / "job" / "tmp" / "link").symlink_to(tmp_path)
    (tmp_path / "job" / "tmp" / "file").symlink_to(tmp_path / "else where")
    assert measure_disk_use(tmp_path / "job").bytes < MIB


def test_a_folder_without_rights_is_counted(tmp_path: Path) -> None:
    hidden = tmp_path / "tmp" / "hidden"
    hidden.mkdir(parents=True)
    (hidden / "file").write_bytes(BLOCK)
    hidden.chmod(0)
    assert measure_disk_use(tmp_path).bytes >= MIB


def test_a_walk_stops_at_its_limits(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number}").mkdir()
    assert measure_disk_use(tmp_path, 50).entries == 51
    place = tmp_path / "0"
    for _ in range(DEPTH_LIMIT + 1):
        place /= "d"
    place.mkdir(parents=True)
    assert measure_disk_use(tmp_path).too_deep


def test_what_a_disk_mb_stands_for() -> None:
    assert disk_limit(0) is None
    assert disk_limit(1) == DiskLimit(MIB, disk_usage.MIN_ENTRIES)
    assert disk_limit(4096) == DiskLimit(4096 * MIB, 4096 * ENTRIES_PER_MIB)
    assert disk_limit(1_000_000) == DiskLimit(1_000_000 * MIB, disk_usage.MAX_ENTRIES)


def test_a_limit_tells_its_figures() -> None:
    limit = DiskLimit(64 * MIB, 5000)
    assert limit.explain_excess(DiskUse(64 * MIB, 5000)) is None
    assert "used 65 MiB of disk and may use 64" in (limit.explain_excess(DiskUse(64 * MIB + 1)) or "")
    assert "over 5000 files" in (limit.explain_excess(DiskUse(0, 5001)) or "")
    assert "deeper than 100" in (limit.explain_excess(DiskUse(too_deep=True)) or "")


class CountedWrites:
    """A file system and a job on it, as a disk watch sees them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.use = DiskUse(entries=3)
        self.free = (100 * MIB, 10_000)
        self.now = 1000.0
        self.took_s = 0.0
        self.walks = 0
        self.spent = 0.0
        self.watch = DiskWatch(Path(), DiskLimit(10 * MIB, 1000), 10.0, lambda: self.now, lambda: self.spent)
        monkeypatch.setattr(disk_usage, "measure_disk_use", self._measure)
        monkeypatch.setattr(self.watch, "_free_space", lambda: self.free)

    def _measure(self, folder: Path, most_entries: int) -> DiskUse:
        self.walks += 1
        self.spent += self.took_s
        return self.use

    def look(self, after_s: float = 0.5) -> str | None:
        self.now += after_s
        return self.watch.check()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> CountedWrites:
    return CountedWrites(monkeypatch)


def test_files_are_counted_when_the_disk_has_grown_by_what_is_left(counted: CountedWrites) -> None:
    assert counted.look() is None
    counted.free = (90 * MIB, 10_000)
    assert counted.look() is None
    assert counted.walks == 1
    counted.free, counted.use = (90 * MIB - 1, 10_000), DiskUse(10 * MIB + 1)
    assert counted.look() is not None


def test_files_are_counted_when_the_disk_lost_inodes(counted: CountedWrites) -> None:
    counted.look()
    counted.free, counted.use = (100 * MIB, 9_000), DiskUse(0, 1001)
    assert counted.look() is not None


def test_growth_that_others_hide_is_found_after_a_while(counted: CountedWrites) -> None:
    counted.look()
    counted.use = DiskUse(10 * MIB + 1)
    assert [counted.look() for _ in range(19)] == [None] * 19
    assert counted.look() is not None
    assert counted.walks == 2


@pytest.mark.parametrize(("took_s", "pause_s"), [(0.1, 2.0), (60.0, 10.0)])
def test_a_walk_that_took_long_is_not_repeated_at_once(counted: CountedWrites, took_s: float, pause_s: float) -> None:
    counted.took_s = took_s
    counted.look()
    counted.free = (0, 0)
    counted.look(pause_s - 0.1)
    assert counted.walks == 1
    counted.look(0.2)
    assert counted.walks == 2


def test_holes_of_outputs_count(tmp_path: Path) -> None:
    sparse(tmp_path / "a", 6 * MIB)
    assert [path.name for path in collect_outputs(tmp_path, 8 * MIB).files] == ["a"]
    sparse(tmp_path / "b", 6 * MIB)
    with pytest.raises(OutputRefused, match="outputs are 12 MiB, holes included, and the job may use 8") as refused:
        collect_outputs(tmp_path, 8 * MIB)
    assert refused.value.code == "disk_exceeded"


class SpaceReport(httpx2.AsyncBaseTransport):
    """An edge that reports its size limit and must receive no upload."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        assert (request.method, request.url.path) == ("OPTIONS", "/v1/uploads")
        return httpx2.Response(204, headers={"Tus-Max-Size": str(20 << 30)})


async def test_what_the_edge_will_not_take_is_not_hashed(tmp_path: Path) -> None:
    async with httpx2.AsyncClient(base_url="http://edge", transport=SpaceReport()) as http:
        with anyio.fail_after(10), pytest.raises(AssetRefused, match=f"has {TIB} bytes, the edge takes {20 << 30}"):
            await AssetClient(http).upload("ann", sparse(tmp_path / "film.mp4", TIB), "film.mp4")


async def test_hashing_can_be_cancelled(tmp_path: Path) -> None:
    """Reading a quarter of a terabyte would take minutes."""

    class Endless(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            hashing.set()
            return httpx2.Response(204)

    hashing = anyio.Event()
    async with httpx2.AsyncClient(base_url="http://edge", transport=Endless()) as http:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(AssetClient(http).upload, "ann", sparse(tmp_path / "film", TIB // 4), "film")
                await hashing.wait()
                tasks.cancel_scope.cancel()


@pytest.fixture
def world(tmp_path: Path) -> RunnerEnvironment:
    made = RunnerEnvironment(tmp_path)
    made.disk_mb = 1
    return made


async def hoards(box: FakeContainer) -> int:
    """The job writes more than its limit and ignores SIGTERM."""
    box.handles_term = True
    (box.spec.job_dir / "tmp" / "hoard").write_bytes(2 * BLOCK)
    await anyio.sleep_forever()
    return 0


async def test_a_job_that_writes_too_much_is_ended_at_once_with_figures(world: RunnerEnvironment) -> None:
    world.programs["hoards"] = hoards
    world.timeouts = Timeouts(grace_s=3600.0)
    key = await world.submit("hoards")
    async with world.run_runner():
        job = await world.wait_until_ended(key)
        await world.wait_until_clean()
    assert job.error is not None
    assert (job.error.code, job.error.blame) == ("disk_exceeded", Blame.CLIENT)
    assert job.error.message.startswith("the job used 3 MiB of disk and may use 1: ")
    assert await world.event_types(key) == ["Submitted", "Started", "Failed"]


async def test_a_job_that_is_quick_and_writes_too_much_fails_all_the_same(world: RunnerEnvironment) -> None:
    async def quick(box: FakeContainer) -> int:
        (box.spec.job_dir / "tmp" / "hoard").write_bytes(2 * BLOCK)
        write_outputs(box, data={"text": "done"})
        return 0

    world.programs["quick"] = quick
    world.pace = replace(world.pace, disk_s=3600.0)
    key = await world.submit("quick")
    async with world.run_runner():
        job = await world.wait_until_ended(key)
    assert job.error is not None
    assert job.error.code == "disk_exceeded"


async def test_the_next_life_knows_the_figures(world: RunnerEnvironment) -> None:
    """The first runner is killed after its note and before the end of the container."""
    key = await world.submit("waits")
    async with world.run_runner() as first:
        await world.wait_until_running(key)
        box = await world.wait_for_container()
        stopped = anyio.Event()

        async def hangs(handle: str, grace_s: float) -> None:
            stopped.set()
            await anyio.sleep_forever()

        first.engine.stop = hangs  # type: ignore[method-assign]
        (box.spec.job_dir / "tmp" / "hoard").write_bytes(2 * BLOCK)
        await wait_with_deadline(stopped.wait)
        (box.spec.job_dir / "tmp" / "hoard").unlink()
    async with world.run_runner("i2"):
        job = await world.wait_until_ended(key)
    assert job.error is not None
    assert job.error.message.startswith("the job used 3 MiB of disk and may use 1: ")


async def test_a_job_within_its_limit_is_left_alone(world: RunnerEnvironment) -> None:
    key = await world.submit("well")
    async with world.run_runner():
        assert (await world.wait_until_ended(key)).status == "succeeded"


TOO_MUCH = "MiB of disk and may use 8"
WITHOUT_RIGHTS = """
import os, time
os.mkdir(home / 'tmp' / 'a')
file = open(home / 'tmp' / 'a' / 'f', 'wb')
os.chmod(home / 'tmp' / 'a', 0)
file.write(b'x' * (64 << 20))
time.sleep(600)
"""
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
(home / 'tmp' / 'a').write_bytes(b'x' * (64 << 20))
time.sleep(600)
"""
NESTS = """
import os
os.chdir(home / 'tmp')
while True:
    os.mkdir('d')
    os.chdir('d')
"""
# What a job of `hostile` does, which may use 8 MiB, and what its failure tells.
HOARDS = {
    "bytes": ("file = open(home / 'tmp' / 'a', 'wb')\nwhile True: file.write(b'x' * (1 << 20))", TOO_MUCH),
    "outputs": ("file = open(home / 'out' / 'a', 'wb')\nfor _ in range(64): file.write(b'x' * (1 << 20))", TOO_MUCH),
    "a hole": ("open(home / 'out' / 'a', 'wb').truncate(1 << 40)", f"outputs are {(1 << 20) + 1} MiB, holes included"),
    "files": ("for n in range(20_000): open(home / 'tmp' / str(n), 'x').close()", "over 4096 files"),
    "folders": (NESTS, "deeper than 100|over 4096 files"),
    "without rights": (WITHOUT_RIGHTS, TOO_MUCH),
    "deaf": (DEAF, TOO_MUCH),
}


async def test_a_job_that_uses_more_than_its_disk_mb_ends(shared_idle: RunningInstallation) -> None:
    """Run all of them at once, beside a normal job."""
    await shared_idle.installation.start_runner(endpoints=ENDPOINT_DIRS, LAMPLIGHTER_SLOTS=str(len(HOARDS) + 1))
    jobs = {name: await submit_job(shared_idle, endpoint="hostile", code=code) for name, (code, _) in HOARDS.items()}
    good = await submit_job(shared_idle, text="well", seconds=2)
    for name, job in jobs.items():
        over = await wait_until_ended(shared_idle.ann, job.id)
        assert over.error is not None, name
        assert (over.error.code, over.error.blame) == ("disk_exceeded", "client"), (name, over.error)
        assert re.search(HOARDS[name][1], over.error.message), (name, over.error.message)
    assert (await wait_until_ended(shared_idle.ann, good.id)).status == "succeeded"
    await wait_until_clean(shared_idle)


async def test_the_edge_tells_a_runner_what_it_takes(shared_installation: RunningInstallation, tmp_path: Path) -> None:
    at = shared_installation.installation
    async with asset_client(at.url, at.keys["runner"]) as client:
        with anyio.fail_after(10), pytest.raises(AssetRefused):
            await client.upload("ann", sparse(tmp_path / "film.mp4", TIB), "film.mp4")


FLOOD = """
import os
for _ in range(600): os.write(1, b'all work and no play\\n' * 50_000)
print('the end')
"""


async def test_a_log_that_nobody_reads_does_not_fill_the_disk(tmp_path: Path) -> None:
    """600 MB with the process engine; Docker itself keeps 20 MB. The log ends with a complete line."""
    async with ProcessEngine(tmp_path / "state", IMAGES / "jobkit") as engine:
        mine = ContainerIdentity(installation="attack", host="here", owner="ann", job="j", round=1, attempt=1)
        spec = ContainerSpec(
            identity=mine,
            image="",
            folder="/",
            command=(sys.executable, "-c", FLOOD),
            job_dir=tmp_path / "jobs" / "job",
            limits=ContainerLimits(memory_mb=128, cpus=1.0),
        )
        handle = await engine.start(spec)
        with anyio.fail_after(60):
            assert (await engine.wait(handle)).code == 0
            used = measure_disk_use(tmp_path / "state").bytes
            said = b"".join([chunk.data async for chunk in engine.output(handle, None)])
        await engine.remove(handle)
    assert used < 400 * MIB
    lines = said.splitlines()
    assert lines[-1] == b"the end"
    assert set(lines[1:-1]) == {b"all work and no play"}
