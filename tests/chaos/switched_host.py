"""A host with a power switch: its runner runs while the host has power, and restarts after a kill."""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from tests.chaos.chaos_installation import ChaosInstallation
from tests.support.installation import HOST
from tests.support.wait import wait_for

POLL_INTERVAL_S = 0.1
POWER_OFF_TIMEOUT_S = 300.0  # 100 s on a calm machine if the edge is killed: it observes for 30 s, then waits again

# The power driver that the edge runs: a file stands for power.
DRIVER_PROGRAM = """
import pathlib, sys
power, verb = pathlib.Path(sys.argv[1]), sys.argv[2]
if verb == "state":
    sys.exit(0 if power.exists() else 1)
power.touch() if verb == "on" else power.unlink(missing_ok=True)
"""
RULES = "min_on = 0.5\nidle_after = 1.0\n"


def declare_host(folder: Path) -> None:
    """Write the edge's settings in `folder` for a host with a power switch."""
    verbs = ("on", "off", "state")
    argv = {verb: json.dumps([sys.executable, "-c", DRIVER_PROGRAM, str(folder / "power"), verb]) for verb in verbs}
    text = "".join(f"{verb} = {words}\n" for verb, words in argv.items())
    (folder / "lamplighter.toml").write_text(f'[hosts.{HOST}]\ndriver = "command"\n{text}{RULES}')


def is_powered(chaos: ChaosInstallation) -> bool:
    """Return whether the host has power."""
    return (chaos.installation.folder / "power").exists()


@asynccontextmanager
async def run_host(chaos: ChaosInstallation) -> AsyncIterator[None]:
    """Run the host while the block runs. It has power at first, so that the edge learns what it offers."""
    (chaos.installation.folder / "power").touch()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_run, chaos)
        yield
        tasks.cancel_scope.cancel()


async def _run(chaos: ChaosInstallation) -> None:
    while True:
        runner = chaos.installation.runners.get(HOST)
        runs = runner is not None and runner.was_started
        if is_powered(chaos) and not runs:
            await chaos.start_runner()
        elif runner is not None and runs and not is_powered(chaos):
            await runner.stop()
        await anyio.sleep(POLL_INTERVAL_S)


async def wait_until_off(chaos: ChaosInstallation) -> None:
    """Wait until the edge has switched it off."""

    async def out() -> bool:
        return not is_powered(chaos)

    await wait_for(out, timeout_s=POWER_OFF_TIMEOUT_S)
