"""Warm slots over the fakes: who is taken, who is refilled, who gives way, and what a life leaves to the next."""

import itertools
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from bus.port import Conflict
from runner.engines.memory import Box, Signalled
from runner.engines.port import NO_JOB, Identity, Limits, Spec
from runner.gpu.memory import MemoryGpus
from runner.settings import WarmSettings
from runner.spare import became, claim
from schemas.container import ExitCode
from schemas.events import Recorded, Submitted
from schemas.gpu import GpuProcess, GpuSample
from schemas.host import Warm
from schemas.job import Claim
from schemas.words import Status
from tests.broker import until
from tests.runner.warmed import kind, waked, warm
from tests.runner.world import World, out, waits, well

HOST = "gpu-1"
CARD = GpuSample(index=0, uuid="GPU-0", name="c", memory_total_mb=24000, memory_used_mb=0, memory_free_mb=24000)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Endpoint `ready` is started ahead."""
    made = World(tmp_path)
    made.programs = {"ready": warm(well), "long": warm(waits), "well": well, "waits": waits}
    made.kinds = {"ready": kind("ready", tmp_path)}
    return made


def on_a_card(world: World, *names: str, vram_mb: int, **card: object) -> MemoryGpus:
    """These endpoints need a card, and there is one."""
    world.kinds = {name: kind(name, world.folder, gpus=1, vram_mb=vram_mb) for name in names}
    world.gpus = gpus = MemoryGpus(replace(CARD, **card))
    return gpus


async def presence(world: World, endpoint: str = "ready") -> Warm | None:
    row = await world.edge.hosts.get(HOST)
    return next((one for one in row.value.warm if one.endpoint == endpoint), None) if row else None


async def test_the_waiting_container_takes_the_job_and_another_takes_its_place(world: World) -> None:
    async with world.life() as life:
        (first,) = await world.waiting("ready")
        key = await world.submit("ready")
        ended = await world.ended(key)
        (second,) = await world.waiting("ready")
        assert ended.status is Status.SUCCEEDED
        assert "woken" in await world.said(key)
        assert (first.spec.identity.job, first.exit and first.exit.code) == (NO_JOB, 0)
        assert second.handle != first.handle
        await life.drained()
    await world.cleared()


async def test_each_job_has_a_container_of_its_own(world: World) -> None:
    world.slots, world.warm = 2, replace(world.warm, count=2)
    seen: list[tuple[str, str]] = []

    async def notes(box: Box) -> int:
        seen.append((box.handle, (box.spec.job_dir / "job.json").read_text()))
        out(box)
        return 0

    world.programs["ready"] = warm(notes)
    async with world.life() as life:
        keys = [await world.submit("ready", f"j{number}") for number in range(12)]
        for key in keys:
            assert (await world.ended(key)).status is Status.SUCCEEDED
        await life.drained()
    assert len({handle for handle, _ in seen}) == len(seen) == 12
    assert all(any(f'"id":"{key.id}"' in text for _, text in seen) for key in keys)


async def test_inputs_are_staged_into_the_waiting_folder(world: World) -> None:
    world.kinds = {"ready": kind("ready", world.folder)}
    schema = {"type": "object", "properties": {"file": {"type": "string", "format": "asset"}}}
    endpoint = replace(world.kinds["ready"].endpoint, input=schema)
    world.kinds["ready"] = replace(world.kinds["ready"], endpoint=endpoint)

    async def copies(box: Box) -> int:
        (given,) = (box.spec.job_dir / "in").iterdir()
        out(box, {"copy": given.read_bytes()})
        return 0

    world.programs["ready"] = warm(copies)
    async with world.life():
        await world.waiting("ready")
        ended = await world.ended(await world.submit("ready", input={"file": world.shop.add(b"given")}))
    assert ended.output is not None
    assert world.shop.held[ended.output.files[0].sha256] == b"given"


async def test_one_whose_job_went_to_another_runner_waits_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runners hold one pointer, the other's claim is written first: nothing was sent to the container."""
    async with world.life() as life:
        (box,) = await world.waiting("ready")
        with monkeypatch.context() as patched:
            raced = anyio.Event()

            async def first(*_: object) -> int:
                raced.set()
                patched.undo()
                raise Conflict("the other was first")

            patched.setattr(life.bus.records, "update", first)
            key = await world.submit("ready")
            assert (await world.ended(key)).status is Status.SUCCEEDED
    assert raced.is_set()
    assert (box.spec.identity.job, box.exit and box.exit.code) == (NO_JOB, 0)


async def test_one_that_still_loads_is_taken_too(world: World) -> None:
    loaded = anyio.Event()

    async def load(_: Box) -> None:
        await loaded.wait()

    world.programs["ready"] = warm(well, load)
    async with world.life():
        box = await world.boxed()
        key = await world.submit("ready")
        await world.running(key)
        loaded.set()
        assert (await world.ended(key)).status is Status.SUCCEEDED
        assert "woken" in await world.said(key)
    assert box.exit is not None


async def test_a_job_cancelled_while_its_container_loads_leaves_nothing(world: World) -> None:
    async def load(_: Box) -> None:
        await anyio.sleep_forever()

    world.programs["ready"] = warm(well, load)
    async with world.life() as life:
        await world.boxed()
        key = await world.submit("ready")
        await world.running(key)
        await world.cancel(key)
        assert (await world.ended(key)).status is Status.CANCELLED
        await life.drained()
    await world.cleared()


async def test_where_vram_fits_twice_the_next_one_loads_while_the_job_runs(world: World) -> None:
    on_a_card(world, "long", vram_mb=8000)
    async with world.life():
        (first,) = await world.waiting("long")
        key = await world.submit("long")
        await world.running(key)

        async def woken() -> bool:
            return "woken" in await world.said(key)

        await until(woken)
        (second,) = await world.waiting("long")
    assert second is not first


async def test_where_it_fits_once_the_next_one_loads_right_after(world: World) -> None:
    on_a_card(world, "ready", vram_mb=16000)
    go = anyio.Event()

    async def later(box: Box) -> int:
        await go.wait()
        out(box)
        return 0

    world.programs["ready"] = warm(later)
    async with world.life():
        (first,) = await world.waiting("ready")
        key = await world.submit("ready")
        await world.running(key)

        async def alone() -> bool:
            return await presence(world) == Warm("ready", 0, 0)

        await until(alone)
        assert list(world.boxes) == [first.handle]
        go.set()
        await world.ended(key)
        (second,) = await world.waiting("ready")
    assert second is not first


async def test_what_waits_gives_way_to_a_job_that_needs_the_room(world: World) -> None:
    """Seen by the card: the waiting container has taken 16 of its 24 GB."""
    gpus = on_a_card(world, "ready", "cold", vram_mb=16000)
    assert world.kinds is not None
    cold = world.kinds["cold"]
    world.kinds["cold"] = replace(cold, endpoint=replace(cold.endpoint, warm=False))
    world.programs["cold"] = well
    async with world.life():
        (waiting,) = await world.waiting("ready")
        mine = GpuProcess(1, used_mb=16000, containers=(waiting.handle,))
        gpus.show(replace(CARD, memory_used_mb=16000, memory_free_mb=8000, processes=(mine,)))
        ended = await world.ended(await world.submit("cold"))
        assert ended.status is Status.SUCCEEDED
        assert waiting.handle not in world.boxes


async def test_what_waits_gives_the_card_back_to_its_owner(world: World) -> None:
    gpus = on_a_card(world, "ready", vram_mb=8000)
    world.gpu_settings = replace(
        world.gpu_settings, fitness=replace(world.gpu_settings.fitness, owner_settle_s=0.0, owner_quiet_s=0.05)
    )
    async with world.life():
        (waiting,) = await world.waiting("ready")
        gpus.show(replace(CARD, processes=(GpuProcess(99, used_mb=4000),)))

        async def given_back() -> bool:
            return not world.boxes

        await until(given_back)
        gpus.show(CARD)
        await anyio.sleep(0.06)  # the owner's quiet time is by the clock
        gpus.show(CARD)
        (again,) = await world.waiting("ready")
    assert again is not waiting


async def test_one_that_dies_while_it_loads_backs_off_and_says_why(world: World) -> None:
    deaths: list[float] = []

    async def load(box: Box) -> None:
        deaths.append(anyio.current_time())
        box.write(b'{"type":"error","code":"model_load_failed","message":"no weights"}\n')
        raise Signalled(ExitCode.INTERNAL)

    world.programs["ready"] = warm(well, load)
    world.warm = WarmSettings(memory_reserve_mb=0, backoff_s=0.05, backoff_most_s=10.0)
    async with world.life():

        async def often() -> bool:
            return len(deaths) >= 4

        await until(often)

        async def told() -> bool:
            now = await presence(world)
            return now is not None and "model_load_failed: no weights" in (now.why or "")

        await until(told)
    pauses = [later - before for before, later in itertools.pairwise(deaths)]
    assert all(pause >= 0.05 * 2**number for number, pause in enumerate(pauses))


async def test_one_that_dies_while_it_waits_is_replaced_and_a_job_in_between_starts_cold(world: World) -> None:
    async with world.life() as life:
        (box,) = await world.waiting("ready")
        box.finish(137)
        box.scope.cancel()
        key = await world.submit("ready")
        assert (await world.ended(key)).status is Status.SUCCEEDED
        await world.waiting("ready")
        await life.drained()
    await world.cleared()


async def test_one_that_waited_long_makes_room_for_a_fresh_one(world: World) -> None:
    world.warm = replace(world.warm, recycle_s=0.1)
    async with world.life():
        (old,) = await world.waiting("ready")

        async def fresh() -> bool:
            return old.handle not in world.boxes and bool(world.boxes)

        await until(fresh)


async def test_off_nothing_waits(world: World) -> None:
    world.warm = replace(world.warm, on=False)
    async with world.life():
        assert (await world.ended(await world.submit("ready"))).status is Status.SUCCEEDED
        assert await presence(world) is None
        await world.cleared()


async def test_the_next_life_removes_what_waited(world: World) -> None:
    async with world.life():
        (box,) = await world.waiting("ready")
    world.kinds = {}
    async with world.life("i2"):
        await world.cleared()
    assert box.handle not in world.boxes


@pytest.mark.parametrize("opened", [False, True])
async def test_killed_around_the_line_the_job_runs_once(world: World, opened: bool) -> None:
    """The claim is in the folder; whether the line was sent nobody knows. The next life sends it, and follows."""
    world.kinds = {"ready": replace(kind("ready", world.folder), folder=world.folder)}
    key = await world.submit("ready")
    entry = await world.edge.records.read(key)
    assert entry is not None
    running = replace(entry.recorded.job, status=Status.RUNNING, attempt=1, claim=Claim(HOST, "i0", 1))
    await world.edge.records.update(key, Recorded(datetime.now(UTC), Submitted(), running), entry.revision)
    folder = world.folder / HOST / "warm-i0-1"
    (folder / "job" / "out").mkdir(parents=True)
    mine = Identity(installation="test", host=HOST, spare=folder.name)
    box = Box("left-1", Spec(identity=mine, image="ready", job_dir=folder / "job", limits=Limits(1, 1.0)), _now)
    world.boxes[box.handle] = box
    box.begin()
    claim(folder, replace(mine, owner=key.owner, job=key.id, round=1, attempt=1))
    starts: list[int] = []

    async def plays() -> None:
        if not opened:
            await waked(box)
        starts.append(1)
        out(box)
        box.finish(0)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(plays)
        async with world.life():
            ended = await world.ended(key)
    assert (ended.status, ended.attempt, ended.releases) == (Status.SUCCEEDED, 1, {})
    assert starts == [1]
    assert became(folder) is None


def _now() -> datetime:
    return datetime.now(UTC)
