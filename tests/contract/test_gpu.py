"""Contract of every `GpuMonitor`: the fake, and the one with real nvidia-ml-py over a stub library."""

import random
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

import anyio
import pytest

from runner.gpu.monitor import MonitorTiming, NvmlMonitor, nvml_spawner
from runner.gpu.port import GpuMonitor, NoGpuMonitor
from schemas.gpu import GpuMonitorState, GpuSample, GpuSnapshot
from tests.runner.gpu.stub_nvml import StubNvml, gpu_uuid
from tests.support.fake_gpus import FakeGpuMonitor

DEADLINE_S = 60


class Bench(Protocol):
    """GPUs, and ways to break them."""

    gpus: GpuMonitor

    def heat(self, index: int, celsius: int) -> None: ...
    def xid(self, index: int, number: int) -> None: ...
    def lose(self, index: int) -> None: ...
    def hang(self) -> None: ...
    def thaw(self) -> None: ...


class MemoryBench:
    def __init__(self) -> None:
        self._samples = {index: self._sample(index, 40) for index in range(2)}
        self.gpus = FakeGpuMonitor(*self._samples.values())

    def _sample(self, index: int, celsius: int) -> GpuSample:
        return GpuSample(
            index=index,
            uuid=gpu_uuid(index),
            name="Memory",
            memory_total_mb=24576,
            memory_used_mb=0,
            memory_free_mb=24320,
            temperature_c=celsius,
        )

    def heat(self, index: int, celsius: int) -> None:
        self._samples[index] = self._sample(index, celsius)
        self.gpus.show(*self._samples.values())

    def xid(self, index: int, number: int) -> None:
        self.gpus.report_xid(gpu_uuid(index), number)

    def lose(self, index: int) -> None:
        self.gpus.lose(gpu_uuid(index))

    def hang(self) -> None:
        self.gpus.set_state(GpuMonitorState.HUNG, "told to hang")

    def thaw(self) -> None:
        self.gpus.show(*self._samples.values())


class StubBench:
    def __init__(self, folder: Path) -> None:
        self._stub = StubNvml(folder, count=2)
        timing = MonitorTiming(first_reading_timeout_s=20.0, reading_timeout_s=5.0, restart_backoff_s=0.05)
        self.gpus = NvmlMonitor(
            nvml_spawner(0.05, env=self._stub.env), clock=time.time, random=random.random, timing=timing
        )

    def heat(self, index: int, celsius: int) -> None:
        self._stub.set(**{f"gpu{index}__temperature": celsius})

    def xid(self, index: int, number: int) -> None:
        self._stub.xid(index, number)

    def lose(self, index: int) -> None:
        self._stub.set(**{f"gpu{index}__lost": 1})

    def hang(self) -> None:
        self._stub.set(hang=1)

    def thaw(self) -> None:
        self._stub.set(hang=0)


@pytest.fixture(params=["memory", "stub"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    made: Any = MemoryBench() if request.param == "memory" else StubBench(tmp_path)
    async with made.gpus:
        yield made


async def until(gpus: GpuMonitor, holds: Callable[[GpuSnapshot], bool]) -> GpuSnapshot:
    """Return the first snapshot for which the condition holds."""
    with anyio.fail_after(DEADLINE_S):
        snapshot = gpus.snapshot()
        while not holds(snapshot):
            snapshot = await gpus.wait_for_change(snapshot)
    return snapshot


async def test_entering_returns_with_the_first_word(bench: Bench) -> None:
    snapshot = bench.gpus.snapshot()
    assert snapshot.state is GpuMonitorState.OK
    assert snapshot.at > 0
    assert [sample.uuid for sample in snapshot.samples] == [gpu_uuid(0), gpu_uuid(1)]


async def test_a_reading_that_changes_is_shown(bench: Bench) -> None:
    bench.heat(1, 77)
    snapshot = await until(bench.gpus, lambda now: now.samples[1].temperature_c == 77)
    assert snapshot.samples[0].temperature_c == 40


async def test_every_xid_reaches_every_reader_once(bench: Bench) -> None:
    with anyio.fail_after(DEADLINE_S), bench.gpus.events() as one, bench.gpus.events() as other:
        bench.xid(1, 31)
        bench.xid(0, 13)
        for reader in (one, other):
            heard = [await reader.receive(), await reader.receive()]
            assert [(event.uuid, event.xid) for event in heard] == [(gpu_uuid(1), 31), (gpu_uuid(0), 13)]
            with pytest.raises(anyio.WouldBlock):
                reader.receive_nowait()


async def test_a_reader_that_left_is_forgotten(bench: Bench) -> None:
    with bench.gpus.events() as gone:
        pass
    with anyio.fail_after(DEADLINE_S), bench.gpus.events() as staying:
        bench.xid(0, 13)
        assert (await staying.receive()).xid == 13
    with pytest.raises(anyio.ClosedResourceError):
        gone.receive_nowait()


async def test_a_lost_gpu_stays_lost_and_leaves_the_other_alone(bench: Bench) -> None:
    bench.lose(0)
    first = await until(bench.gpus, lambda now: bool(now.lost))
    with anyio.fail_after(DEADLINE_S), bench.gpus.events() as events:
        bench.xid(1, 13)
        assert (await events.receive()).uuid == gpu_uuid(1)
    for snapshot in (first, bench.gpus.snapshot()):
        assert snapshot.state is GpuMonitorState.OK
        assert [gpu.uuid for gpu in snapshot.lost] == [gpu_uuid(0)]
        assert [sample.uuid for sample in snapshot.samples] == [gpu_uuid(1)]


async def test_a_hang_is_a_state_with_the_last_samples_as_history(bench: Bench) -> None:
    bench.hang()
    hung = await until(bench.gpus, lambda now: now.state is GpuMonitorState.HUNG)
    assert hung.why
    assert len(hung.samples) == 2
    bench.thaw()
    back = await until(bench.gpus, lambda now: now.state is GpuMonitorState.OK)
    assert back.at > hung.at


async def test_a_host_without_a_watch_has_no_gpu_and_no_error() -> None:
    async with NoGpuMonitor() as gpus:
        snapshot = gpus.snapshot()
        assert (snapshot.state, snapshot.samples, snapshot.lost, snapshot.why) == (GpuMonitorState.NONE, (), (), "")
        with gpus.events() as events, pytest.raises(anyio.WouldBlock):
            events.receive_nowait()
