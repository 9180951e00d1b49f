"""The forecast of start and end: its arithmetic by hand, and forecasts as clients see them."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from bus.interface import RecordChange
from edge.core.messages import DEFAULT_WAKE_S
from edge.hosts.registry import WakeForecast
from edge.jobs.forecast import (
    RUNS_PER_ENDPOINT_LIMIT,
    FinishedRun,
    RunHistory,
    RunTimePercentiles,
    collect_run_times,
    estimate_queue_s,
    estimate_run_time,
    quantile,
)
from edge.jobs.view import Asker
from schemas import events as e
from schemas.endpoint import Resources
from schemas.host import GpuReport, HostCapabilities
from schemas.job import AttemptUsage, Claim, Job, Output, Status, WaitReason
from schemas.job_view import Eta
from schemas.texts import Language
from tests.support.edge_services import ECHO_ENDPOINT, FakeBusServicesRig

TEN = collect_run_times(FinishedRun(float(seconds)) for seconds in (50, 10, 20, 30, 40))
SIZED = collect_run_times(FinishedRun(seconds, size) for seconds, size in ((10.0, 5.0), (30.0, 10.0), (40.0, 10.0)))
GPU_ECHO = replace(ECHO_ENDPOINT, input_seconds="seconds", resources=Resources(gpus=1))
GPUS = (GpuReport("GPU-a", "Model A"), GpuReport("GPU-b", "Model B"))


@pytest.mark.parametrize(
    ("known", "size", "elapsed", "expected"),
    [
        (TEN, None, 0.0, RunTimePercentiles(30.0, 46.0, 5)),
        (TEN, 7.0, 0.0, RunTimePercentiles(30.0, 46.0, 5)),  # no input size is known: total times decide
        (collect_run_times([FinishedRun(1.0), FinishedRun(2.0)]), None, 0.0, None),
        (SIZED, 20.0, 0.0, RunTimePercentiles(60.0, 76.0, 3)),
        (SIZED, None, 0.0, RunTimePercentiles(30.0, 38.0, 3)),
        (TEN, None, 35.0, RunTimePercentiles(45.0, 49.0, 5)),  # it has taken longer than three of the five
        (TEN, None, 60.0, RunTimePercentiles(60.0, 60.0, 5)),
        (SIZED, 20.0, 70.0, RunTimePercentiles(80.0, 80.0, 3)),
    ],
)
def test_how_long_a_run_takes(
    known: Any, size: float | None, elapsed: float, expected: RunTimePercentiles | None
) -> None:
    fake = estimate_run_time(known, size, elapsed)
    assert fake == (expected and pytest.approx(expected))


def test_quantiles_lie_between_their_neighbours() -> None:
    assert [quantile((1.0, 2.0, 4.0), q) for q in (0.0, 0.25, 0.5, 0.75, 1.0)] == [1.0, 1.5, 2.0, 3.0, 4.0]
    assert quantile((7.0,), 0.9) == 7.0


@pytest.mark.parametrize(
    ("ahead", "running", "slots", "waits"),
    [(0, 0, 1, 0.0), (0, 1, 1, 5.0), (2, 1, 1, 25.0), (0, 1, 2, 0.0), (1, 2, 2, 10.0), (3, 0, 0, 30.0)],
)
def test_how_long_the_queue_takes(ahead: int, running: int, slots: int, waits: float) -> None:
    assert estimate_queue_s(ahead, running, slots, 10.0) == waits


async def ran(world: FakeBusServicesRig, seconds: float, gpu: str | None = None, **given: Any) -> Job:
    """Submit a job and end it after `seconds` of run time."""
    job = await world.submit(**given)
    await world.write_event(job.key, e.Started(Claim("gpu-1", "i1", 1, gpu)))
    done = await world.write_event(job.key, e.Succeeded(Output(), AttemptUsage(run_s=seconds)))
    await world.bus.job_queue.remove(done.pointer)
    return done


async def eta(world: FakeBusServicesRig, job: Job) -> Eta | None:
    await world.wait_until_indexed()
    return (await world.job_views.build(await world.jobs.read(job.key))).eta


def after(moment: datetime | None, world: FakeBusServicesRig) -> float:
    assert moment is not None
    return round((moment - world.time.now).total_seconds(), 1)


async def test_nothing_is_reported_before_three_runs_have_ended(fake: FakeBusServicesRig) -> None:
    await fake.announce_capabilities()
    await fake.send_heartbeat()
    for seconds in (8.0, 10.0):
        await ran(fake, seconds)
    assert await eta(fake, await fake.submit()) is None


async def test_a_waiting_job_shows_its_start_and_its_end(fake: FakeBusServicesRig) -> None:
    await fake.announce_capabilities()
    await fake.send_heartbeat()
    for seconds in (8.0, 10.0, 12.0):
        await ran(fake, seconds)
    first, second = await fake.submit(), await fake.submit()
    one, two = await eta(fake, first), await eta(fake, second)
    assert one is not None
    assert two is not None
    assert (after(one.start_at, fake), after(one.finish_at, fake), after(one.p90_finish_at, fake)) == (0.0, 10.0, 11.6)
    assert one.samples == 3
    assert (after(two.start_at, fake), after(two.finish_at, fake)) == (10.0, 20.0)
    await fake.start(first)
    two = await eta(fake, second)
    assert two is not None
    assert after(two.start_at, fake) == 5.0  # a running job is half done on average


async def test_a_running_job_shows_its_end_and_an_ended_one_nothing(fake: FakeBusServicesRig) -> None:
    for seconds in (8.0, 10.0, 12.0):
        await ran(fake, seconds)
    running = await fake.start(await fake.submit())
    fake.time.advance(seconds=9)
    left = await eta(fake, running)
    assert left is not None
    assert left.start_at == running.started_at
    assert after(left.finish_at, fake) == 2.0
    fake.time.advance(seconds=9)
    overdue = await eta(fake, running)
    assert overdue is not None
    assert after(overdue.finish_at, fake) == 0.0
    assert await eta(fake, await fake.finish_running(running)) is None


async def test_a_wake_comes_before_the_start_and_a_time_asked_for_too(fake: FakeBusServicesRig) -> None:
    for seconds in (8.0, 10.0, 12.0):
        await ran(fake, seconds)
    job = await fake.submit()
    assert await eta(fake, job) is None  # no host has joined, so no start can be predicted
    fake.wake_forecasts.forecast = WakeForecast(WaitReason.HOST_OFF, "gpu-1", None, None)
    dark = await eta(fake, job)
    assert dark is not None
    assert after(dark.start_at, fake) == DEFAULT_WAKE_S
    fake.wake_forecasts.forecast = WakeForecast(WaitReason.HOST_WAKING, "gpu-1", 90.0, 31.0)
    bobs = await fake.submit("bob")
    view = await fake.job_views.build(await fake.jobs.read(bobs.key), Asker(Language.ZH))
    assert view.message == "任务已排队，请等待约2分钟"
    waking = await eta(fake, bobs)
    assert waking is not None
    assert after(waking.start_at, fake) == 31.0 + 10.0
    at = fake.time() + timedelta(hours=1)
    later = await eta(fake, await fake.submit(not_before=at.isoformat()))
    assert later is not None
    assert (later.start_at, later.finish_at) == (at, at + timedelta(seconds=10))


@pytest.mark.parametrize("reason", [WaitReason.HOST_BLOCKED, WaitReason.HOST_FAULT])
async def test_nothing_is_reported_when_nobody_knows_how_long_it_lasts(
    fake: FakeBusServicesRig, reason: WaitReason
) -> None:
    for seconds in (8.0, 10.0, 12.0):
        await ran(fake, seconds)
    fake.wake_forecasts.forecast = WakeForecast(reason, "gpu-1", 90.0, 90.0)
    assert await eta(fake, await fake.submit()) is None


async def test_runs_on_this_kind_of_gpu_tell_by_the_second_of_input(fake: FakeBusServicesRig) -> None:
    offer = HostCapabilities(host="gpu-1", incarnation="i1", at=fake.time(), endpoints=(GPU_ECHO,), gpus=GPUS[:1])
    await fake.bus.capabilities.put("gpu-1", offer)
    await fake.bus.capabilities.put("gpu-2", replace(offer, host="gpu-2", gpus=GPUS[1:]))
    await fake.send_heartbeat()
    for length in (1, 2, 4):
        for uuid, rate in (("GPU-a", 2.0), ("GPU-b", 7.0)):
            body = {"endpoint": "echo", "input": {"text": "x", "seconds": length}}
            job = (await fake.jobs.submit("ann", body)).entry.record.job
            await fake.write_event(job.key, e.Started(Claim("gpu-1", "i1", 1, uuid)))
            await fake.write_event(job.key, e.Succeeded(Output(), AttemptUsage(run_s=rate * length)))
            await fake.bus.job_queue.remove(job.pointer)
    body = {"endpoint": "echo", "input": {"text": "x", "seconds": 30}}
    waiting = (await fake.jobs.submit("bob", body)).entry.record.job
    found = await eta(fake, waiting)
    assert found is not None
    assert after(found.finish_at, fake) == 60.0
    assert found.samples == 3
    there = await fake.write_event(waiting.key, e.Started(Claim("gpu-2", "i1", 1, "GPU-b")))
    slower = await eta(fake, there)
    assert slower is not None
    assert slower.finish_at == (there.started_at or fake.time.now) + timedelta(seconds=210)


@pytest.mark.parametrize("length", [1e308, 10**400, 1e-300])
async def test_an_absurd_length_is_none(fake: FakeBusServicesRig, length: float) -> None:
    """A number that a client chooses must break neither its own request nor the tasks of the edge."""
    sized = replace(ECHO_ENDPOINT, input_seconds="seconds")
    offer = HostCapabilities(host="gpu-1", incarnation="i1", at=fake.time(), endpoints=(sized,))
    await fake.bus.capabilities.put("gpu-1", offer)
    await fake.send_heartbeat()

    async def submitted(seconds: float) -> Job:
        body = {"endpoint": "echo", "input": {"seconds": seconds}}
        return (await fake.jobs.submit("ann", body)).entry.record.job

    for _ in range(3):
        job = await submitted(length)
        await fake.write_event(job.key, e.Started(Claim("gpu-1", "i1", 1, None)))
        await fake.write_event(job.key, e.Succeeded(Output(), AttemptUsage(run_s=10.0)))
    for seconds in (length, 86_400):
        found = await eta(fake, await submitted(seconds))
        assert found is not None
        assert found.finish_at is not None
        assert found.finish_at - fake.time.now < timedelta(hours=1)


async def test_calendars_end(fake: FakeBusServicesRig) -> None:
    await fake.announce_capabilities()
    await fake.send_heartbeat()
    for _ in range(3):
        await ran(fake, 1e15)
    found = await eta(fake, await fake.submit())
    assert found is not None
    assert after(found.finish_at, fake) > 1e6


async def test_what_is_remembered_is_bounded_and_the_newest(fake: FakeBusServicesRig) -> None:
    history = RunHistory(fake.index, fake.endpoints)
    job = await fake.submit()
    at = fake.time()
    for number in range(2 * RUNS_PER_ENDPOINT_LIMIT):
        done = replace(job, status=Status.SUCCEEDED, usage=AttemptUsage(run_s=float(number + 1)))
        history._on_records([RecordChange(number, done.key, e.JobRecord(at, e.Queued(), done))])
    runs = [run.run_s for run in history.runs("echo")]
    assert runs[:1] == [RUNS_PER_ENDPOINT_LIMIT + 1.0]
    assert len(runs) == RUNS_PER_ENDPOINT_LIMIT
    assert history.median_s("echo") == sum(runs) / len(runs)
    assert history.median_s("never-run") is None
