"""Warm pools over the fakes: which container is taken, replaced and evicted, and what the next runner process finds."""

import itertools
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from bus.interface import RevisionConflict
from runner.engines.port import NO_JOB, ContainerIdentity, ContainerLimits, ContainerSpec
from runner.execution.warm_container import write_warm_assignment
from runner.settings import WarmSettings
from schemas.container_protocol import ExitCode
from schemas.events import JobRecord, Submitted
from schemas.gpu import GpuProcess, GpuSample
from schemas.host import WarmPoolStatus
from schemas.job import Claim, Status
from tests.runner.warm_programs import wait_for_start_line, warm_endpoint, warm_program
from tests.support.fake_engine import EndBySignal, FakeContainer
from tests.support.fake_gpus import FakeGpuMonitor
from tests.support.runner_environment import RunnerEnvironment, run_until_stopped, succeed, write_outputs
from tests.support.wait import wait_for

HOST = "gpu-1"
GPU = GpuSample(index=0, uuid="GPU-0", name="c", memory_total_mb=24000, memory_used_mb=0, memory_free_mb=24000)


@pytest.fixture
def world(tmp_path: Path) -> RunnerEnvironment:
    """Return an environment whose endpoint `ready` has warm containers."""
    made = RunnerEnvironment(tmp_path)
    made.programs = {
        "ready": warm_program(succeed),
        "long": warm_program(run_until_stopped),
        "well": succeed,
        "waits": run_until_stopped,
    }
    made.kinds = {"ready": warm_endpoint("ready", tmp_path)}
    return made


def on_a_gpu(world: RunnerEnvironment, *names: str, vram_mb: int, **gpu: object) -> FakeGpuMonitor:
    """Make these endpoints need a GPU, and provide one."""
    world.kinds = {name: warm_endpoint(name, world.folder, gpus=1, vram_mb=vram_mb) for name in names}
    world.gpus = gpus = FakeGpuMonitor(replace(GPU, **gpu))
    return gpus


async def presence(world: RunnerEnvironment, endpoint: str = "ready") -> WarmPoolStatus | None:
    row = await world.edge.heartbeats.get(HOST)
    return next((one for one in row.value.warm if one.endpoint == endpoint), None) if row else None


async def test_the_waiting_container_takes_the_job_and_another_takes_its_place(world: RunnerEnvironment) -> None:
    async with world.run_runner() as runner:
        (first,) = await world.wait_for_warm("ready")
        key = await world.submit("ready")
        ended = await world.wait_until_ended(key)
        (second,) = await world.wait_for_warm("ready")
        assert ended.status is Status.SUCCEEDED
        assert "woken" in await world.log_text(key)
        assert (first.spec.identity.job, first.exit and first.exit.code) == (NO_JOB, 0)
        assert second.handle != first.handle
        await runner.drained()
    await world.wait_until_clean()


async def test_each_job_has_a_container_of_its_own(world: RunnerEnvironment) -> None:
    world.slots, world.warm = 2, replace(world.warm, count=2)
    seen: list[tuple[str, str]] = []

    async def notes(box: FakeContainer) -> int:
        seen.append((box.handle, (box.spec.job_dir / "job.json").read_text()))
        write_outputs(box)
        return 0

    world.programs["ready"] = warm_program(notes)
    async with world.run_runner() as runner:
        keys = [await world.submit("ready", f"j{number}") for number in range(12)]
        for key in keys:
            assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED
        await runner.drained()
    assert len({handle for handle, _ in seen}) == len(seen) == 12
    assert all(any(f'"id":"{key.id}"' in text for _, text in seen) for key in keys)


async def test_inputs_are_staged_into_the_waiting_folder(world: RunnerEnvironment) -> None:
    world.kinds = {"ready": warm_endpoint("ready", world.folder)}
    schema = {"type": "object", "properties": {"file": {"type": "string", "format": "asset"}}}
    endpoint = replace(world.kinds["ready"].config, input=schema)
    world.kinds["ready"] = replace(world.kinds["ready"], config=endpoint)

    async def copies(box: FakeContainer) -> int:
        (given,) = (box.spec.job_dir / "in").iterdir()
        write_outputs(box, {"copy": given.read_bytes()})
        return 0

    world.programs["ready"] = warm_program(copies)
    async with world.run_runner():
        await world.wait_for_warm("ready")
        ended = await world.wait_until_ended(await world.submit("ready", input={"file": world.assets.add(b"given")}))
    assert ended.output is not None
    assert world.assets.held[ended.output.files[0].sha256] == b"given"


async def test_one_whose_job_went_to_another_runner_waits_on(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let two runners have one message; the other's claim is written first, so nothing was sent to the container."""
    async with world.run_runner() as runner:
        (box,) = await world.wait_for_warm("ready")
        with monkeypatch.context() as patched:
            raced = anyio.Event()

            async def first(*_: object) -> int:
                raced.set()
                patched.undo()
                raise RevisionConflict("the other was first")

            patched.setattr(runner.bus.job_store, "update", first)
            key = await world.submit("ready")
            assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED
    assert raced.is_set()
    assert (box.spec.identity.job, box.exit and box.exit.code) == (NO_JOB, 0)


async def test_one_that_still_loads_is_taken_too(world: RunnerEnvironment) -> None:
    loaded = anyio.Event()

    async def load(_: FakeContainer) -> None:
        await loaded.wait()

    world.programs["ready"] = warm_program(succeed, load)
    async with world.run_runner():
        box = await world.wait_for_container()
        key = await world.submit("ready")
        await world.wait_until_running(key)
        loaded.set()
        assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED
        assert "woken" in await world.log_text(key)
    assert box.exit is not None


async def test_a_job_cancelled_while_its_container_loads_leaves_nothing(world: RunnerEnvironment) -> None:
    """The removal of its container is not taken for a death, which would make the next one wait for a backoff."""

    async def load(_: FakeContainer) -> None:
        await anyio.sleep_forever()

    world.programs["ready"] = warm_program(succeed, load)
    with capture_logs() as logs:
        async with world.run_runner() as runner:
            await world.wait_for_container()
            key = await world.submit("ready")
            await world.wait_until_running(key)
            await world.cancel(key)
            assert (await world.wait_until_ended(key)).status is Status.CANCELLED
            await runner.drained()
        await world.wait_until_clean()
    events = [entry["event"] for entry in logs]
    assert "attempt_ended" in events
    assert "warm_container_failed" not in events


async def test_where_vram_fits_twice_the_next_one_loads_while_the_job_runs(world: RunnerEnvironment) -> None:
    on_a_gpu(world, "long", vram_mb=8000)
    async with world.run_runner():
        (first,) = await world.wait_for_warm("long")
        key = await world.submit("long")
        await world.wait_until_running(key)

        async def woken() -> bool:
            return "woken" in await world.log_text(key)

        await wait_for(woken)
        (second,) = await world.wait_for_warm("long")
    assert second is not first


async def test_where_it_fits_once_the_next_one_loads_right_after(world: RunnerEnvironment) -> None:
    on_a_gpu(world, "ready", vram_mb=16000)
    go = anyio.Event()

    async def later(box: FakeContainer) -> int:
        await go.wait()
        write_outputs(box)
        return 0

    world.programs["ready"] = warm_program(later)
    async with world.run_runner():
        (first,) = await world.wait_for_warm("ready")
        key = await world.submit("ready")
        await world.wait_until_running(key)

        async def alone() -> bool:
            return await presence(world) == WarmPoolStatus("ready", 0, 0)

        await wait_for(alone)
        assert list(world.boxes) == [first.handle]
        go.set()
        await world.wait_until_ended(key)
        (second,) = await world.wait_for_warm("ready")
    assert second is not first


async def test_what_waits_gives_way_to_a_job_that_needs_the_room(world: RunnerEnvironment) -> None:
    """Let the waiting container use 16 of the GPU's 24 GB."""
    gpus = on_a_gpu(world, "ready", "cold", vram_mb=16000)
    assert world.kinds is not None
    cold = world.kinds["cold"]
    world.kinds["cold"] = replace(cold, config=replace(cold.config, warm=False))
    world.programs["cold"] = succeed
    async with world.run_runner():
        (waiting,) = await world.wait_for_warm("ready")
        mine = GpuProcess(1, used_mb=16000, containers=(waiting.handle,))
        gpus.show(replace(GPU, memory_used_mb=16000, memory_free_mb=8000, processes=(mine,)))
        ended = await world.wait_until_ended(await world.submit("cold"))
        assert ended.status is Status.SUCCEEDED
        assert waiting.handle not in world.boxes


async def test_what_waits_gives_the_gpu_back_to_its_owner(world: RunnerEnvironment) -> None:
    gpus = on_a_gpu(world, "ready", vram_mb=8000)
    world.gpu_settings = replace(
        world.gpu_settings, fitness=replace(world.gpu_settings.fitness, owner_settle_s=0.0, owner_quiet_s=0.05)
    )
    async with world.run_runner():
        (waiting,) = await world.wait_for_warm("ready")
        gpus.show(replace(GPU, processes=(GpuProcess(99, used_mb=4000),)))

        async def given_back() -> bool:
            return not world.boxes

        await wait_for(given_back)
        gpus.show(GPU)
        await anyio.sleep(0.06)  # the owner's quiet time is by the clock
        gpus.show(GPU)
        (again,) = await world.wait_for_warm("ready")
    assert again is not waiting


async def test_one_that_dies_while_it_loads_backs_off_and_says_why(world: RunnerEnvironment) -> None:
    deaths: list[float] = []

    async def load(box: FakeContainer) -> None:
        deaths.append(anyio.current_time())
        box.write(b'{"type":"error","code":"model_load_failed","message":"no weights"}\n')
        raise EndBySignal(ExitCode.INTERNAL)

    world.programs["ready"] = warm_program(succeed, load)
    world.warm = WarmSettings(memory_reserve_mb=0, backoff_s=0.05, backoff_most_s=10.0)
    async with world.run_runner():

        async def often() -> bool:
            return len(deaths) >= 4

        await wait_for(often)

        async def told() -> bool:
            now = await presence(world)
            return now is not None and "model_load_failed: no weights" in (now.why or "")

        await wait_for(told)
    pauses = [later - before for before, later in itertools.pairwise(deaths)]
    assert all(pause >= 0.05 * 2**number for number, pause in enumerate(pauses))


async def test_one_that_dies_while_it_waits_is_replaced_and_a_job_in_between_starts_cold(
    world: RunnerEnvironment,
) -> None:
    async with world.run_runner() as runner:
        (box,) = await world.wait_for_warm("ready")
        box.finish(137)
        box.scope.cancel()
        key = await world.submit("ready")
        assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED
        await world.wait_for_warm("ready")
        await runner.drained()
    await world.wait_until_clean()


async def test_one_that_waited_long_makes_room_for_a_fresh_one(world: RunnerEnvironment) -> None:
    world.warm = replace(world.warm, recycle_s=0.1)
    async with world.run_runner():
        (old,) = await world.wait_for_warm("ready")

        async def fresh() -> bool:
            return old.handle not in world.boxes and bool(world.boxes)

        await wait_for(fresh)


async def test_off_nothing_waits(world: RunnerEnvironment) -> None:
    world.warm = replace(world.warm, on=False)
    async with world.run_runner():
        assert (await world.wait_until_ended(await world.submit("ready"))).status is Status.SUCCEEDED
        assert await presence(world) is None
        await world.wait_until_clean()


async def test_the_next_life_removes_what_waited(world: RunnerEnvironment) -> None:
    async with world.run_runner():
        (box,) = await world.wait_for_warm("ready")
    world.kinds = {}
    async with world.run_runner("i2"):
        await world.wait_until_clean()
    assert box.handle not in world.boxes


@pytest.mark.parametrize("opened", [False, True])
async def test_killed_around_the_line_the_job_runs_once(world: RunnerEnvironment, opened: bool) -> None:
    """Leave a claim, with and without the start line sent. The next runner process sends it, and follows."""
    world.kinds = {"ready": replace(warm_endpoint("ready", world.folder), folder=world.folder)}
    key = await world.submit("ready")
    entry = await world.edge.job_store.read(key)
    assert entry is not None
    running = replace(entry.record.job, status=Status.RUNNING, attempt=1, claim=Claim(HOST, "i0", 1))
    await world.edge.job_store.update(key, JobRecord(datetime.now(UTC), Submitted(), running), entry.revision)
    folder = world.folder / HOST / "warm-i0-1"
    (folder / "job" / "out").mkdir(parents=True)
    mine = ContainerIdentity(installation="test", host=HOST, warm_dir=folder.name)
    box = FakeContainer(
        "left-1",
        ContainerSpec(identity=mine, image="ready", job_dir=folder / "job", limits=ContainerLimits(1, 1.0)),
        _now,
    )
    world.boxes[box.handle] = box
    box.begin()
    write_warm_assignment(folder, replace(mine, owner=key.owner, job=key.id, round=1, attempt=1))
    starts: list[int] = []

    async def plays() -> None:
        if not opened:
            await wait_for_start_line(box)
        starts.append(1)
        write_outputs(box)
        box.finish(0)

    async def is_removed() -> bool:
        return not await anyio.Path(folder).exists()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(plays)
        async with world.run_runner():
            ended = await world.wait_until_ended(key)
            await wait_for(is_removed)
    assert (ended.status, ended.attempt, ended.free_releases) == (Status.SUCCEEDED, 1, {})
    assert starts == [1]


def _now() -> datetime:
    return datetime.now(UTC)
