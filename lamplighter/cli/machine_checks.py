"""What `lamplighter doctor` checks on a machine that can run jobs: its Docker engine and its GPUs."""

import asyncio
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import anyio

from lamplighter.cli import display
from lamplighter.cli.doctor import CheckStatus, Finding
from runner.engines.docker import DockerEngine, DockerSettings
from runner.engines.own_container import find_container_faults
from runner.engines.port import EngineError
from runner.engines.selection import docker_settings
from runner.gpu.monitor import NvmlMonitor, nvml_spawner
from runner.settings import RunnerSettings
from schemas.gpu import GpuMonitorState

ENGINE_PROBE_TIMEOUT_S = 20.0


def check_machine() -> Iterator[Finding]:
    """Yield the findings of all checks here."""
    yield from asyncio.run(check_local_engine())
    yield from asyncio.run(check_own_container())
    yield from asyncio.run(check_local_gpus())


async def check_local_engine() -> list[Finding]:
    """Check that a Docker engine answers on this machine, and how it gives GPUs to containers."""
    fix = "install or start Docker, or run jobs unisolated with --engine process"
    settings = DockerSettings(base_url=os.environ.get("DOCKER_HOST", DockerSettings().base_url))
    try:
        with anyio.fail_after(ENGINE_PROBE_TIMEOUT_S):
            async with DockerEngine(settings) as engine:
                info = await engine.probe()
    except (EngineError, TimeoutError) as error:
        return [Finding("engine", CheckStatus.WARN, f"no Docker engine: {error}", fix)]
    return [Finding("engine", CheckStatus.OK, f"{info.name} {info.version}", "; ".join(info.notes))]


async def check_own_container() -> list[Finding]:
    """Check what a runner needs of the container that we are in. Nothing outside of a container."""
    data = Path(os.environ.get("LAMPLIGHTER_DATA", RunnerSettings().data))
    faults = await find_container_faults(data, docker_settings(os.environ.get("LAMPLIGHTER_DOCKER_SOCKET"), 1))
    return [Finding("container", CheckStatus.FAIL, fault.what, fault.fix) for fault in faults]


async def check_local_gpus() -> list[Finding]:
    """Check the GPUs of this machine with NVML."""
    async with NvmlMonitor(nvml_spawner(), clock=time.time, random=random.random) as monitor:
        snapshot = monitor.snapshot()
    if snapshot.state is not GpuMonitorState.OK:
        return [
            Finding(
                "nvml",
                CheckStatus.WARN,
                f"{snapshot.state}: {snapshot.why or 'no GPU is monitored'}",
                "GPU endpoints cannot run here",
            )
        ]
    count = display.format_count(len(snapshot.samples), "GPU")
    return [Finding("nvml", CheckStatus.OK, f"driver {snapshot.driver}, {count}")] + [
        Finding(f"gpu {gpu.uuid}", CheckStatus.OK, f"{gpu.name}, {gpu.memory_free_mb} MB free")
        for gpu in snapshot.samples
    ]
