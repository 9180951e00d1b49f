"""The host beside its jobs: heartbeat and capabilities, priorities and pools, GPUs."""

import time
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from bus.interface import QueueMessage
from runner.claiming.loop import ClaimLoop
from runner.endpoints import LocalEndpoint
from runner.engines.port import EngineError, StartFailed
from runner.gpu.allocator import GpuAllocator, GpuSettings
from runner.gpu.placement import Placed, Unplaceable
from runner.host_facts import HostEnd
from schemas.container_protocol import ExitCode
from schemas.endpoint import Endpoint, Resources, Timeouts
from schemas.events import AttemptReleased
from schemas.gpu import GpuMonitorState, GpuSample
from schemas.host import HostHeartbeat
from schemas.job import JobKey, Policy, Priority, Status, WaitReason
from tests.runner.warm_programs import warm_endpoint
from tests.support.fake_bus.stores import FakeTable
from tests.support.fake_engine import FakeContainer
from tests.support.fake_gpus import FakeGpuMonitor
from tests.support.runner_environment import DEADLINE_S, RunnerEnvironment, write_outputs
from tests.support.wait import wait_for


@pytest.fixture
def world(tmp_path: Path) -> RunnerEnvironment:
    return RunnerEnvironment(tmp_path)


async def test_a_host_says_that_it_is_there_and_what_it_runs(world: RunnerEnvironment) -> None:
    key = await world.submit("waits")
    async with world.run_runner():
        await world.wait_for_container()

        async def told() -> bool:
            row = await world.edge.heartbeats.get("gpu-1")
            return row is not None and len(row.value.running) == 1

        await wait_for(told)
        row = await world.edge.heartbeats.get("gpu-1")
        offer = await world.edge.capabilities.get("gpu-1")
    assert row is not None
    assert (row.value.incarnation, row.value.gpu_state, row.value.slots) == ("i1", "none", 1)
    assert (row.value.running[0].owner, row.value.running[0].id) == key
    assert offer is not None
    assert {endpoint.name for endpoint in offer.value.endpoints} == {"well", "waits"}


async def test_each_heartbeat_renews_the_health_file(world: RunnerEnvironment) -> None:
    async with world.run_runner():
        file = anyio.Path(world.health_file)
        await wait_for(file.exists)
        await file.unlink()
        await wait_for(file.exists)


async def test_a_container_that_cannot_be_removed_stops_nobody_else(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulate Docker's "device or resource busy", which it returns while something on the host holds the files."""
    first, second = await world.submit("well", "j1"), await world.submit("well", "j2")
    async with world.run_runner() as running:
        remove, tried = running.engine.remove, list[str]()

        async def busy(handle: str) -> None:
            tried.append(handle)
            if handle == tried[0]:
                raise EngineError("device or resource busy")
            await remove(handle)

        monkeypatch.setattr(running.engine, "remove", busy)
        assert (await world.wait_until_ended(first)).status is Status.SUCCEEDED
        assert (await world.wait_until_ended(second)).status is Status.SUCCEEDED

        async def tried_again() -> bool:
            return tried.count(tried[0]) > 1

        await wait_for(tried_again)


async def test_what_comes_with_the_word_to_stop_is_given_back(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that the message is returned: otherwise no runner would see it for half a minute."""
    next_one, stopped = ClaimLoop._fetch_next, list[ClaimLoop]()

    async def with_the_word(agent: ClaimLoop) -> QueueMessage | None:
        delivery = await next_one(agent)
        if delivery is not None and not stopped:
            stopped.append(agent)
            agent.stop()
        return delivery

    monkeypatch.setattr(ClaimLoop, "_fetch_next", with_the_word)
    key = await world.submit("well")
    async with world.run_runner("i1"), world.run_runner("i2", host="gpu-2"):
        assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED
    assert len(stopped) == 1


async def test_an_offer_is_written_before_the_first_heartbeat(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered_before: list[bool] = []
    put = FakeTable.put

    async def observed(table: FakeTable[object], key: str, value: object) -> int:
        if isinstance(value, HostHeartbeat):
            offered_before.append(await world.edge.capabilities.get("gpu-1") is not None)
        return await put(table, key, value)

    monkeypatch.setattr(FakeTable, "put", observed)
    async with world.run_runner():

        async def beaten() -> bool:
            return bool(offered_before)

        await wait_for(beaten)
    assert offered_before[0]


async def test_an_offer_is_written_once_while_it_says_the_same(world: RunnerEnvironment) -> None:
    async with world.run_runner():

        async def offered() -> bool:
            return await world.edge.capabilities.get("gpu-1") is not None

        await wait_for(offered)
        first = await world.edge.capabilities.get("gpu-1")
        seen = await world.edge.heartbeats.get("gpu-1")

        async def beaten() -> bool:
            return await world.edge.heartbeats.get("gpu-1") != seen

        await wait_for(beaten)
        assert await world.edge.capabilities.get("gpu-1") == first


async def test_high_before_normal_before_low(world: RunnerEnvironment) -> None:
    ran: list[str] = []

    async def notes_itself(box: FakeContainer) -> int:
        ran.append(box.spec.identity.job)
        write_outputs(box)
        return 0

    world.programs["order"] = notes_itself
    world.pace = replace(world.pace, ahead_s=DEADLINE_S)  # what is looked at ahead is given back for a moment
    keys = [
        await world.submit("order", name, priority=priority)
        for name, priority in [("low", Priority.LOW), ("normal", Priority.NORMAL), ("high", Priority.HIGH)]
    ]
    async with world.run_runner():
        for key in keys:
            await world.wait_until_ended(key)
    assert ran == ["high", "normal", "low"]


async def test_an_endpoint_without_its_image_is_not_fetched_again_at_once(world: RunnerEnvironment) -> None:
    key = await world.submit("well")
    async with world.run_runner() as runner:
        runner.engine.next_start_failure = StartFailed("image_missing", "no such image: build it")

        async def told() -> bool:
            row = await world.edge.heartbeats.get("gpu-1")
            return row is not None and row.value.unschedulable == {"well": "image_missing"}

        await wait_for(told)
        other = await world.submit("waits", "j2")
        await world.wait_until_running(other)
    job = await world.job(key)
    assert (job.status, job.free_releases) == (Status.QUEUED, {"image_missing": 1})


async def test_an_endpoint_of_a_shared_pool_that_is_not_here_is_left(world: RunnerEnvironment) -> None:
    own = LocalEndpoint(
        Endpoint(name="well", image="well", pool="shared", resources=Resources(disk_mb=0)), world.folder
    )
    world.kinds = {"well": own}
    there = await world.submit("elsewhere", "j1", pool="shared")
    here = await world.submit("well", "j2", pool="shared")
    async with world.run_runner():
        assert (await world.wait_until_ended(here)).status is Status.SUCCEEDED
    assert (await world.job(there)).status is Status.QUEUED
    assert (await world.event_types(there)) == ["Submitted"]


GPU = "GPU-1"
SAMPLE = GpuSample(index=0, uuid=GPU, name="A GPU", memory_total_mb=24_000, memory_used_mb=0, memory_free_mb=24_000)
NEEDS = Endpoint(name="n", image="n", resources=Resources(gpus=1, vram_mb=8000))
PLENTY = 10**6


async def test_a_gpu_with_a_fault_is_not_given_out_again() -> None:
    allocator = GpuAllocator(FakeGpuMonitor(SAMPLE), GpuSettings(), time.monotonic)
    gpus = allocator._monitor
    assert isinstance(gpus, FakeGpuMonitor)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(allocator.run)

        async def judged() -> bool:
            return allocator.place(NEEDS, PLENTY) == Placed((GPU,))

        await wait_for(judged)
        holding = allocator.allocate((GPU,), NEEDS)
        await holding.job_started("box", time.monotonic())
        assert isinstance(allocator.place(NEEDS, PLENTY), Unplaceable)
        gpus.report_xid(GPU, 79)

        async def told() -> bool:
            return holding.xid == 79

        await wait_for(told)
        holding.release()
        refused = allocator.place(NEEDS, PLENTY)
        tasks.cancel_scope.cancel()
    assert isinstance(refused, Unplaceable)
    assert refused.reason is WaitReason.GPU_UNHEALTHY
    assert allocator.reports()[0].fitness == "unhealthy"


def test_on_a_host_without_gpus_what_can_do_without_runs() -> None:
    allocator = GpuAllocator(FakeGpuMonitor(), GpuSettings(), time.monotonic)
    optional = replace(NEEDS, resources=Resources(gpus=1, gpu_optional=True))
    assert allocator.place(optional, PLENTY) == Placed()
    assert isinstance(allocator.place(NEEDS, PLENTY), Unplaceable)
    assert allocator.reports() == ()
    short = allocator.place(optional, 0)
    assert isinstance(short, Unplaceable)
    assert short.reason is WaitReason.DISK_SHORT


@pytest.mark.parametrize(("code", "fitness"), [("gpu_unsupported", "fit"), ("gpu_unhealthy", "unhealthy")])
async def test_an_image_that_is_not_made_for_the_gpu_tells_nothing_against_it(
    world: RunnerEnvironment, code: str, fitness: str
) -> None:
    """Check exit code 69: the job is released at no cost, and only a GPU that erred needs a probe."""

    async def fails(box: FakeContainer) -> int:
        box.write(b'{"type":"error","code":"%s","message":"no kernel image"}\n' % code.encode())
        return ExitCode.GPU_UNUSABLE

    world.gpus = FakeGpuMonitor(SAMPLE)
    world.kinds = {"gpu": warm_endpoint("gpu", world.folder, gpus=1)}
    world.warm = replace(world.warm, on=False)
    world.programs = {"gpu": fails}
    async with world.run_runner() as runner:
        job = await world.wait_for_event(await world.submit("gpu"), AttemptReleased)
        assert (job.charged_attempts, job.free_releases) == (0, {code: 1})
        assert runner.host.gpu_allocator.reports()[0].fitness == fitness


async def test_an_endpoint_with_a_label_that_the_host_lacks_is_offered_with_the_reason(
    world: RunnerEnvironment,
) -> None:
    needs = Endpoint(name="well", image="well", labels={"disk": "nvme"})
    world.kinds = {"well": LocalEndpoint(needs, world.folder)}
    async with world.run_runner():
        await world.submit("well")

        async def told() -> HostHeartbeat | None:
            row = await world.edge.heartbeats.get("gpu-1")
            return row.value if row is not None and row.value.unschedulable else None

        heartbeat: HostHeartbeat = await wait_for(told)
        offer = await world.edge.capabilities.get("gpu-1")
    assert heartbeat.unschedulable == {"well": "requirement_unmet"}
    assert offer is not None
    assert [one.name for one in offer.value.endpoints] == ["well"]
    assert offer.value.unmet == {"well": "label disk = nvme (it has no such label)"}
    world.labels = {"disk": "nvme"}
    async with world.run_runner("i2"):
        assert (await world.wait_until_ended(JobKey("ada", "j1"))).status is Status.SUCCEEDED
        offer = await world.edge.capabilities.get("gpu-1")
    assert offer is not None
    assert (offer.value.unmet, offer.value.labels) == ({}, {"disk": "nvme"})


async def test_gpus_of_another_model_are_told_and_a_driver_that_hangs_is_not(world: RunnerEnvironment) -> None:
    gpus = FakeGpuMonitor(replace(SAMPLE, name="Tesla T4", compute_capability="7.5"))
    world.gpus = gpus
    needs = Endpoint(name="well", image="well", resources=Resources(gpus=1), gpu=("A100",))
    world.kinds = {"well": LocalEndpoint(needs, world.folder)}

    async def unmet() -> dict[str, str]:
        row = await world.edge.capabilities.get("gpu-1")
        return row.value.unmet if row is not None else {}

    async def has_none() -> bool:
        return not await unmet()

    async with world.run_runner():
        told: dict[str, str] = await wait_for(unmet)
        assert told == {"well": "a GPU (A100) (it has Tesla T4, 7.5)"}
        gpus.set_state(GpuMonitorState.HUNG, "silent")
        await wait_for(has_none)


async def test_a_job_that_may_outlive_the_host_waits_for_another(world: RunnerEnvironment) -> None:
    """The endpoint's limit is 600 s. A job with a longer one, its own or by its input, stays in the queue."""
    now = 0.0
    limits = Timeouts(base_s=600.0, per_input_s=2.0, grace_s=0.2)
    config = Endpoint(name="well", image="well", input_seconds="length", timeouts=limits)
    world.kinds = {"well": LocalEndpoint(config, world.folder)}
    world.end = HostEnd(10_000.0, 10_000.0, lambda: now)
    now = 9_000.0
    async with world.run_runner():
        long = [
            await world.submit("well", "j1", policy=Policy(execution_timeout_s=5000.0)),
            await world.submit("well", "j2", input={"length": 1000}),
        ]
        short = await world.submit("well", "j3", input={"length": 10})
        assert (await world.wait_until_ended(short)).status is Status.SUCCEEDED
        assert {(await world.job(key)).status for key in long} == {Status.QUEUED}
        now = 9_500.0

        async def told() -> bool:
            row = await world.edge.heartbeats.get("gpu-1")
            return row is not None and row.value.unschedulable.get("well") == "host_ending"

        await wait_for(told)
