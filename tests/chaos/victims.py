"""Who is killed, how, and how he comes back."""

import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import anyio.to_thread
from msgspec import Struct

from runner.engines.process import ProcessEngine
from tests.chaos.scene import HOST, Scene


class Victim(Struct, frozen=True):
    """`kill` is SIGKILL; `revive` starts it again. `frozen`: the process that a fault point may hold, if it is one."""

    kill: Callable[[Scene], Awaitable[None]]
    revive: Callable[[Scene], Awaitable[None]]
    frozen: str = ""


async def _nothing(_: Scene) -> None:
    """A container does not come back: its job does."""


async def _kill_edge(scene: Scene) -> None:
    await scene.installation.edge.kill()


async def _kill_runner(scene: Scene) -> None:
    await scene.process("runner").kill()


async def _kill_broker(scene: Scene) -> None:
    await scene.installation.server.kill()


async def _start_broker(scene: Scene) -> None:
    await scene.installation.server.start()


async def _kill_containers(scene: Scene) -> None:
    """Every job that runs, but not what watches over it: on processes that is the shim."""
    async with scene.installation.engine_of(HOST) as engine:
        for found in await engine.find(scene.installation.name, HOST):
            if scene.docker is not None:
                await anyio.to_thread.run_sync(scene.docker.kill_container, found.handle)
            elif isinstance(engine, ProcessEngine) and (shim := await engine.pid(found.handle)):
                _kill_children(shim)


def _kill_children(pid: int) -> None:
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)


async def _kill_docker(scene: Scene) -> None:
    if scene.docker is None:
        raise ValueError("this scene has no Docker engine")
    await anyio.to_thread.run_sync(scene.docker.kill)


async def _start_docker(scene: Scene) -> None:
    if scene.docker is None:
        raise ValueError("this scene has no Docker engine")
    await anyio.to_thread.run_sync(scene.docker.call, "start")


_DOCKER = Victim(_kill_docker, _start_docker)

VICTIMS: Mapping[str, Victim] = {
    "edge": Victim(_kill_edge, Scene.start_edge, "edge"),
    "broker": Victim(_kill_broker, _start_broker),
    "runner": Victim(_kill_runner, Scene.start_runner, "runner"),
    "container": Victim(_kill_containers, _nothing),
    "docker, live-restore": _DOCKER,
    "docker, no live-restore": _DOCKER,
}
