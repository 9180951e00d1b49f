"""What can be killed, how, and how it starts again."""

import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path

import anyio.to_thread
from msgspec import Struct

from runner.engines.process import ProcessEngine
from tests.chaos.chaos_installation import ChaosInstallation
from tests.support.installation import HOST


class KillTarget(Struct, frozen=True):
    """`kill` is SIGKILL; `revive` starts it again. `frozen`: the process of it that a fault point may stop, if any."""

    kill: Callable[[ChaosInstallation], Awaitable[None]]
    revive: Callable[[ChaosInstallation], Awaitable[None]]
    frozen: str = ""


async def _nothing(_: ChaosInstallation) -> None:
    """A container is not started again: its job is."""


async def _kill_edge(chaos: ChaosInstallation) -> None:
    await chaos.installation.edge.kill()


async def _kill_runner(chaos: ChaosInstallation) -> None:
    await chaos.process("runner").kill()


async def _kill_broker(chaos: ChaosInstallation) -> None:
    await chaos.installation.server.kill()


async def _start_broker(chaos: ChaosInstallation) -> None:
    await chaos.installation.server.start()


async def kill_jobs(chaos: ChaosInstallation, host: str = HOST) -> None:
    """Kill every job on the host, but not its shim, which watches it on the process engine."""
    async with chaos.installation.engine_of(host) as engine:
        for found in await engine.find(chaos.installation.name, host):
            if chaos.docker is not None:
                await anyio.to_thread.run_sync(chaos.docker.kill_container, found.handle)
            elif isinstance(engine, ProcessEngine) and (shim := await engine.pid(found.handle)):
                await anyio.to_thread.run_sync(_kill_children, shim)


def _kill_children(pid: int) -> None:
    with suppress(ProcessLookupError, FileNotFoundError):  # it has just ended
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)


async def _kill_docker(chaos: ChaosInstallation) -> None:
    if chaos.docker is None:
        raise ValueError("this scene has no Docker engine")
    await anyio.to_thread.run_sync(chaos.docker.kill)


async def _start_docker(chaos: ChaosInstallation) -> None:
    if chaos.docker is None:
        raise ValueError("this scene has no Docker engine")
    await anyio.to_thread.run_sync(chaos.docker.call, "start")


_DOCKER = KillTarget(_kill_docker, _start_docker)

KILL_TARGETS: Mapping[str, KillTarget] = {
    "edge": KillTarget(_kill_edge, ChaosInstallation.start_edge, "edge"),
    "broker": KillTarget(_kill_broker, _start_broker),
    "runner": KillTarget(_kill_runner, ChaosInstallation.start_runner, "runner"),
    "process": KillTarget(kill_jobs, _nothing),
    "container": KillTarget(kill_jobs, _nothing),
    "docker, live-restore": _DOCKER,
    "docker, no live-restore": _DOCKER,
}
