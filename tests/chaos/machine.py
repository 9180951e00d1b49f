"""A host with a switch: its runner runs while the machine has power, and starts again by itself when it was killed."""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from tests.chaos.scene import HOST, Scene
from tests.e2e.installation import until

LOOK_S = 0.1
DARK_S = 150.0  # an edge that was killed looks on for 30 s before it judges anew

# What the edge runs: power is a file.
SWITCH = """
import pathlib, sys
power, verb = pathlib.Path(sys.argv[1]), sys.argv[2]
if verb == "state":
    sys.exit(0 if power.exists() else 1)
power.touch() if verb == "on" else power.unlink(missing_ok=True)
"""
RULES = "min_on = 0.5\nidle_after = 1.0\n"


def declare(folder: Path) -> None:
    """The edge's settings for a scene in `folder` whose host has a switch."""
    verbs = ("on", "off", "state")
    argv = {verb: json.dumps([sys.executable, "-c", SWITCH, str(folder / "power"), verb]) for verb in verbs}
    text = "".join(f"{verb} = {words}\n" for verb, words in argv.items())
    (folder / "lamplighter.toml").write_text(f'[hosts.{HOST}]\ndriver = "command"\n{text}{RULES}')


def powered(scene: Scene) -> bool:
    """Whether the machine has power."""
    return (scene.installation.folder / "power").exists()


@asynccontextmanager
async def plugged_in(scene: Scene) -> AsyncIterator[None]:
    """The machine itself, for as long as the block runs; it has power at first, so that the edge learns what it is."""
    (scene.installation.folder / "power").touch()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_run, scene)
        yield
        tasks.cancel_scope.cancel()


async def _run(scene: Scene) -> None:
    while True:
        runner = scene.installation.runners.get(HOST)
        runs = runner is not None and runner.started
        if powered(scene) and not runs:
            await scene.start_runner()
        elif runner is not None and runs and not powered(scene):
            await runner.stop()
        await anyio.sleep(LOOK_S)


async def dark(scene: Scene) -> None:
    """Wait until the edge has put it out."""

    async def out() -> bool:
        return not powered(scene)

    await until(out, DARK_S)
