"""The checks of `lamplighter doctor` on a machine that can run jobs: its Docker engine and its GPUs."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import anyio

from edge.core.clock import utc_now
from lamplighter.cli import display
from lamplighter.cli.doctor import CheckStatus, Finding
from lamplighter.cli.process_setup import read_settings_file
from lamplighter.cli.server_commands import CONFIG_VARIABLE, DEFAULT_CONFIG
from runner.engines.docker import DockerEngine, DockerSettings
from runner.engines.port import EngineError
from runner.engines.selection import (
    EngineDecisionUnreadable,
    docker_url,
    find_container_faults,
    find_docker,
    preview_engine,
)
from runner.gpu.monitor import AssignmentInvalid, open_gpu_monitor
from runner.settings import RunnerSettings
from schemas.gpu import GpuMonitorState
from schemas.settings_loader import SettingsInvalid

ENGINE_PROBE_TIMEOUT_S = 20.0
ASSIGNMENT_FIX = "correct the variable, or name the GPUs of this machine's runner with gpu.visible"


def check_machine(data: Path) -> Iterator[Finding]:
    """Yield the findings of all checks here. `data`: the data folder of `up`."""
    yield from asyncio.run(check_local_engine())
    yield from asyncio.run(check_own_container(data))
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


async def check_own_container(data: Path) -> list[Finding]:
    """Check what a runner with Docker needs of the container that we are in. Nothing outside of a container.

    The process engine starts jobs in our container, so it needs nothing. `data`: the data folder of `up`.
    """
    try:
        settings = _read_runner_settings()
        folder = data / "runner" if settings.data == RunnerSettings().data else settings.data
        found = find_docker(settings.docker_socket, os.environ)
        engine = preview_engine(folder, settings.engine, found, utc_now())
    except (SettingsInvalid, EngineDecisionUnreadable) as error:
        return [Finding("runner", CheckStatus.FAIL, str(error))]
    if engine != "docker":
        return []
    faults = await find_container_faults(folder, docker_url(settings.docker_socket))
    return [Finding("container", CheckStatus.FAIL, fault.what, fault.fix) for fault in faults]


def _read_runner_settings() -> RunnerSettings:
    """Read the settings of a runner on this machine. Raises SettingsInvalid."""
    return read_settings_file(Path(os.environ.get(CONFIG_VARIABLE, DEFAULT_CONFIG))).load(RunnerSettings, os.environ)


async def check_local_gpus() -> list[Finding]:
    """Check with NVML the GPUs of this machine that a runner here would use."""
    try:
        visible = _read_runner_settings().gpu.visible
        async with open_gpu_monitor(visible=visible) as monitor:
            snapshot = monitor.snapshot()
    except AssignmentInvalid as error:
        return [Finding("gpus", CheckStatus.FAIL, str(error), ASSIGNMENT_FIX)]
    except SettingsInvalid:
        return []  # another check reports it
    if snapshot.assigned_wrongly:
        return [Finding("gpus", CheckStatus.FAIL, snapshot.assigned_wrongly, ASSIGNMENT_FIX)]
    if snapshot.state is not GpuMonitorState.OK:
        return [
            Finding(
                "nvml",
                CheckStatus.WARN,
                f"{snapshot.state}: {snapshot.why or snapshot.assigned or 'no GPU is monitored'}",
                "GPU endpoints cannot run here",
            )
        ]
    count = display.format_count(len(snapshot.samples), "GPU")
    if snapshot.assigned:
        count = f"GPUs for jobs: {snapshot.assigned}"
    return [Finding("nvml", CheckStatus.OK, f"driver {snapshot.driver}, {count}")] + [
        Finding(f"gpu {gpu.uuid}", CheckStatus.OK, f"{gpu.name}, {gpu.memory_free_mb} MB free")
        for gpu in snapshot.samples
    ]
