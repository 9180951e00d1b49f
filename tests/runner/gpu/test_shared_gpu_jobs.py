"""Jobs that share a GPU: real nvidia-ml-py on the stub, a whole runner above it, fake containers."""

import itertools
from collections.abc import Collection
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from runner.gpu.allocator import GpuSettings, MpsSettings
from runner.gpu.placement import PlacementPolicy
from schemas.job import Job, JobKey, Status, WaitReason
from tests.runner.gpu.stub_monitor import run_stub_monitor
from tests.runner.gpu.stub_nvml import StubNvml
from tests.runner.warm_programs import warm_endpoint, warm_program
from tests.support.fake_engine import FakeContainer
from tests.support.runner_environment import RunnerEnvironment, write_outputs
from tests.support.schema_samples import make_job
from tests.support.wait import wait_for

HOST = "gpu-1"
PATIENCE_S = 0.3
MIXED = {"whole": None, "half": 0.5, "quarter": 0.25}


class Jobs:
    """The program of every endpoint: `end` lets the job of that id end."""

    def __init__(self) -> None:
        self.running: dict[str, FakeContainer] = {}
        self._ended: dict[str, anyio.Event] = {}

    async def __call__(self, box: FakeContainer) -> int:
        id_ = box.spec.identity.job or box.spec.image  # a warm container does not know its job
        self.running[id_] = box
        await self._ended.setdefault(id_, anyio.Event()).wait()
        del self.running[id_]
        write_outputs(box)
        return 0

    def end(self, id_: str) -> None:
        self._ended.setdefault(id_, anyio.Event()).set()

    async def wait_until_running(self, ids: Collection[str]) -> None:
        async def there() -> bool:
            return set(self.running) == set(ids)

        await wait_for(there)


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


@pytest.fixture
def world(tmp_path: Path, jobs: Jobs) -> RunnerEnvironment:
    """Return an environment with an endpoint for each share, and more slots than jobs."""
    made = RunnerEnvironment(tmp_path / "world")
    made.folder.mkdir()
    made.programs = dict.fromkeys(MIXED, jobs)
    made.kinds = {
        name: warm_endpoint(name, tmp_path, gpus=1, vram_mb=1000, **({"share": share} if share else {}))
        for name, share in MIXED.items()
    }
    made.gpu_settings = GpuSettings(placement=PlacementPolicy(turn_after_s=PATIENCE_S))
    made.warm = replace(made.warm, on=False)
    made.slots = 8
    return made


async def wait_for_report(world: RunnerEnvironment, free: float, **refused: WaitReason) -> None:
    """Wait until the host reports so much of GPU 0 as free, and exactly these endpoints as refused."""

    async def told() -> bool:
        row = await world.edge.heartbeats.get(HOST)
        if row is None or not row.value.gpus:
            return False
        return (row.value.gpus[0].share_free, row.value.unschedulable) == (free, dict(refused))

    await wait_for(told)


async def test_shares_run_together_and_the_host_says_what_is_left(
    world: RunnerEnvironment, jobs: Jobs, tmp_path: Path
) -> None:
    async with run_stub_monitor(StubNvml(tmp_path)) as world.gpus, world.run_runner():
        await wait_for_report(world, 1.0)
        await world.submit("half", "j1")
        await wait_for_report(world, 0.5, whole=WaitReason.GPU_SHARE_SHORT)
        await world.submit("quarter", "j2")
        await wait_for_report(world, 0.25, whole=WaitReason.GPU_SHARE_SHORT, half=WaitReason.GPU_SHARE_SHORT)
        await world.submit("quarter", "j3")
        await wait_for_report(world, 0.0, **dict.fromkeys(MIXED, WaitReason.BEHIND))
        last = await world.submit("quarter", "j4")
        await jobs.wait_until_running({"j1", "j2", "j3"})
        jobs.end("j1")
        await jobs.wait_until_running({"j2", "j3", "j4"})
        for id_ in ("j2", "j3", "j4"):
            jobs.end(id_)
        assert (await world.wait_until_ended(last)).status is Status.SUCCEEDED
        await wait_for_report(world, 1.0)


async def test_the_next_runner_process_knows_the_shares_of_the_jobs_that_it_adopts(
    world: RunnerEnvironment, jobs: Jobs, tmp_path: Path
) -> None:
    async with run_stub_monitor(StubNvml(tmp_path)) as world.gpus:
        async with world.run_runner():
            keys = [await world.submit("half", "j1"), await world.submit("quarter", "j2")]
            await jobs.wait_until_running({"j1", "j2"})
        async with world.run_runner("i2"):
            await wait_for_report(world, 0.25, whole=WaitReason.GPU_SHARE_SHORT, half=WaitReason.GPU_SHARE_SHORT)
            for box in jobs.running.values():  # their programs ended with the first process's engine
                write_outputs(box)
                box.finish(0)
            assert [(await world.wait_until_ended(key)).status for key in keys] == [Status.SUCCEEDED] * 2


@pytest.mark.parametrize("pool", [None, "shared"])
async def test_small_jobs_without_end_do_not_keep_a_whole_one_waiting(
    world: RunnerEnvironment, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: str | None
) -> None:
    """Each quarter that ends is followed by the next, which waits already, until it is the whole job's turn.

    In a shared pool a quarter is always the first job when the runner looks.
    """
    world.kinds = {
        name: replace(endpoint, config=replace(endpoint.config, pool=pool))
        for name, endpoint in (world.kinds or {}).items()
    }

    async def find_quarter(*_: object) -> Job:
        return make_job(endpoint="quarter")

    if pool is not None:
        monkeypatch.setattr("runner.claiming.loop.peek_job", find_quarter)

    async def submit(endpoint: str, id_: str) -> JobKey:
        return await world.submit(endpoint, id_, pool=pool or endpoint)

    names = (f"q{number}" for number in itertools.count())
    queued: list[JobKey] = []
    async with run_stub_monitor(StubNvml(tmp_path)) as world.gpus, world.run_runner():
        queued += [await submit("quarter", next(names)) for _ in range(8)]
        await wait_for_report(world, 0.0, **dict.fromkeys(MIXED, WaitReason.BEHIND))
        whole = await submit("whole", "large")

        async def is_large_running() -> bool:
            if "large" in jobs.running:
                return True
            if jobs.running:
                jobs.end(next(iter(jobs.running)))
                queued.append(await submit("quarter", next(names)))
            world.clock.ahead += 0.1  # a message that was returned comes again
            return False

        await wait_for(is_large_running)
        await jobs.wait_until_running({"large"})
        jobs.end("large")
        assert (await world.wait_until_ended(whole)).status is Status.SUCCEEDED

        async def are_all_ended() -> bool:
            for id_ in list(jobs.running):
                jobs.end(id_)
            world.clock.ahead += 0.1
            return {(await world.job(key)).status for key in queued} == {Status.SUCCEEDED}

        await wait_for(are_all_ended)  # and the small ones go on


async def test_another_endpoint_gets_a_turn_after_the_one_whose_turn_it_was_is_removed(
    world: RunnerEnvironment, jobs: Jobs, tmp_path: Path
) -> None:
    world.kinds = {**(world.kinds or {}), "other": warm_endpoint("other", tmp_path, gpus=1, vram_mb=1000)}
    world.programs["other"] = jobs
    short, behind = WaitReason.GPU_SHARE_SHORT, WaitReason.BEHIND
    async with run_stub_monitor(StubNvml(tmp_path)) as world.gpus, world.run_runner() as runner:
        await world.submit("half", "j1")
        await world.submit("whole", "j2")
        await wait_for_report(world, 0.5, whole=short, other=behind, half=behind, quarter=behind)
        del runner.host.endpoints["whole"]
        await wait_for_report(world, 0.5, other=short)
        await world.submit("other", "j3")
        await wait_for_report(world, 0.5, other=short, half=behind, quarter=behind)


async def test_a_warm_container_has_its_share_and_its_part_of_mps(
    world: RunnerEnvironment, jobs: Jobs, tmp_path: Path
) -> None:
    world.warm = replace(world.warm, on=True, count=1)
    world.kinds = {"half": world.kinds["half"]} if world.kinds else {}
    world.programs = {"half": warm_program(jobs)}
    world.gpu_settings = replace(world.gpu_settings, mps=MpsSettings(use="on", pipe_dir=tmp_path))
    async with run_stub_monitor(StubNvml(tmp_path)) as world.gpus, world.run_runner():
        (waiting,) = await world.wait_for_warm("half")
        assert waiting.spec.mps is not None
        assert waiting.spec.mps.percentage == 50
        await wait_for_report(world, 1.0)
        key = await world.submit("half", "j1")
        await wait_for_report(world, 0.5)
        jobs.end("half")
        assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED
        await wait_for_report(world, 1.0)
