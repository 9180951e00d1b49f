"""What `doctor` finds on this machine: the container engine and the cards, through the runner's own adapters."""

import os
import random
import time

import anyio

from lamplighter.cli import show
from lamplighter.cli.checks import Finding, Verdict
from runner.engines.docker import DockerEngine, DockerSettings
from runner.engines.port import EngineError
from runner.gpu.child import nvml
from runner.gpu.watch import Watch
from schemas.gpu import WatchState

PROBE_S = 20.0


async def engine_findings() -> list[Finding]:
    """Whether a Docker engine answers, and how it gives cards to containers."""
    mend = "install or start Docker, or run jobs unisolated with --engine process"
    settings = DockerSettings(base_url=os.environ.get("DOCKER_HOST", DockerSettings().base_url))
    try:
        with anyio.fail_after(PROBE_S):
            async with DockerEngine(settings) as engine:
                info = await engine.probe()
    except (EngineError, TimeoutError) as error:
        return [Finding("engine", Verdict.WARN, f"no Docker engine: {error}", mend)]
    return [Finding("engine", Verdict.OK, f"{info.name} {info.version}", "; ".join(info.notes))]


async def gpu_findings() -> list[Finding]:
    """What NVML says of the cards of this machine."""
    async with Watch(nvml(), clock=time.time, random=random.random) as watch:
        seen = watch.snapshot()
    if seen.state is not WatchState.OK:
        return [
            Finding(
                "nvml",
                Verdict.WARN,
                f"{seen.state}: {seen.why or 'no card is watched'}",
                "GPU endpoints cannot run here",
            )
        ]
    cards = [Finding("nvml", Verdict.OK, f"driver {seen.driver}, {show.counted(len(seen.samples), 'card')}")]
    return cards + [
        Finding(f"card {one.uuid}", Verdict.OK, f"{one.name}, {one.memory_free_mb} MB free") for one in seen.samples
    ]
