"""On a real GPU: preview's nets run there, and the GPU's own counters show that they did."""

import os
import random
import time
from pathlib import Path

import anyio
import anyio.to_thread
import av
import pytest
import torch

from runner.gpu.monitor import NvmlMonitor, nvml_spawner
from schemas.gpu import GpuMonitorState
from tests.images.preview.conftest import Run

pytestmark = pytest.mark.gpu
NOTICED_MB = 200  # a CUDA context alone takes more


@pytest.fixture
def cuda() -> None:
    """A torch that reaches the GPU: the lock file's is the CPU build."""
    if not torch.cuda.is_available():
        why = f"torch {torch.__version__} does not reach the GPU: install the CUDA build of this version"
        if os.environ.get("REQUIRE_GPU") == "1":
            pytest.fail(why, pytrace=False)
        pytest.skip(why)


async def test_a_preview_is_made_on_the_gpu(cuda: None, run: Run, samples: Path) -> None:
    peak = 0

    async def look(watch: NvmlMonitor) -> None:
        nonlocal peak
        seen = watch.snapshot()
        while True:
            peak = max(peak, *(sample.memory_used_mb for sample in seen.samples))
            seen = await watch.wait_for_change(seen)

    async with NvmlMonitor(nvml_spawner(0.2), clock=time.time, random=random.random) as watch:
        before = watch.snapshot()
        assert before.state is GpuMonitorState.OK, before.why
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look, watch)
            began = time.monotonic()
            done = await anyio.to_thread.run_sync(run, samples / "face.mp4", samples / "speech.wav")
            took_s = time.monotonic() - began
            tasks.cancel_scope.cancel()
    assert done.code == 0, done.log
    used = peak - max(sample.memory_used_mb for sample in before.samples)
    assert used > NOTICED_MB
    with av.open(str(done.out / "result.mp4")) as video, av.open(str(samples / "speech.wav")) as wav:
        assert video.duration is not None
        assert wav.duration is not None
        assert abs(video.duration - wav.duration) <= 0.1 * av.time_base
        spoken_s = wav.duration / av.time_base
    print(f"preview on {torch.cuda.get_device_name()}: {spoken_s:.1f} s of speech in {took_s:.1f} s, {used} MB of VRAM")  # noqa: T201 - docs/gpu.md keeps it
