"""Random disturbances by a seed: kills, cuts, frozen processes and full disks, with pauses and durations."""

import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from random import Random

import anyio
import anyio.to_thread
from msgspec import Struct

from tests.chaos.chaos_installation import ChaosInstallation, continue_process
from tests.chaos.kill_targets import kill_jobs
from tests.support.small_disk import fill_disk

MIN_PAUSE_S, MAX_PAUSE_S = 0.5, 4.0
SHORT_S, LONG_S = (0.2, 5.0), (20.0, 100.0)
LONG_SHARE = 0.05  # share of long disturbances in a long run; only these outlast a lease


class Disturbance(Struct, frozen=True):
    """After `pause_s`, `kind` of DISTURBANCES affects `host`, or what all hosts share, for `lasts_s`."""

    pause_s: float
    kind: str
    host: str
    lasts_s: float


DisturbanceAction = Callable[[ChaosInstallation, Disturbance], Awaitable[None]]


async def _edge_killed(scene: ChaosInstallation, blow: Disturbance) -> None:
    await scene.installation.edge.kill()
    await anyio.sleep(blow.lasts_s)
    await scene.start_edge()


async def _broker_killed(scene: ChaosInstallation, blow: Disturbance) -> None:
    await scene.installation.server.kill()
    await anyio.sleep(blow.lasts_s)
    await scene.installation.server.start()


async def _runner_killed(scene: ChaosInstallation, blow: Disturbance) -> None:
    async with scene.excuse_outage(blow.host):
        await scene.process("runner", blow.host).kill()
        await anyio.sleep(blow.lasts_s)
        await scene.start_runner(blow.host)


async def _jobs_killed(scene: ChaosInstallation, blow: Disturbance) -> None:
    await kill_jobs(scene, blow.host)


def _cut(*names: str) -> DisturbanceAction:
    async def cut(scene: ChaosInstallation, blow: Disturbance) -> None:
        proxies = [scene.proxies[name.format(host=blow.host)] for name in names]
        async with scene.excuse_outage(blow.host):
            for proxy in proxies:
                proxy.cut()
            await anyio.sleep(blow.lasts_s)
            for proxy in proxies:
                proxy.heal()

    return cut


async def _frozen(scene: ChaosInstallation, blow: Disturbance, pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    await anyio.sleep(blow.lasts_s)
    continue_process(pid)


async def _edge_frozen(scene: ChaosInstallation, blow: Disturbance) -> None:
    await _frozen(scene, blow, scene.installation.edge.pid)


async def _broker_frozen(scene: ChaosInstallation, blow: Disturbance) -> None:
    await _frozen(scene, blow, scene.installation.server.pid or 0)


async def _runner_frozen(scene: ChaosInstallation, blow: Disturbance) -> None:
    async with scene.excuse_outage(blow.host):
        await _frozen(scene, blow, scene.process("runner", blow.host).pid)


def _full(place: str) -> DisturbanceAction:
    async def full(scene: ChaosInstallation, blow: Disturbance) -> None:
        ballast = await anyio.to_thread.run_sync(fill_disk, _folder(scene, place, blow))
        await anyio.sleep(blow.lasts_s)
        await anyio.to_thread.run_sync(ballast.unlink)

    return full


def _folder(scene: ChaosInstallation, place: str, blow: Disturbance) -> Path:
    return scene.installation.folder / place.format(host=blow.host)


DISTURBANCES: Mapping[str, DisturbanceAction] = {
    "edge killed": _edge_killed,
    "broker killed": _broker_killed,
    "runner killed": _runner_killed,
    "jobs killed": _jobs_killed,
    "host cut off from the broker": _cut("{host} broker"),
    "host cut off from the edge": _cut("{host} edge"),
    "host cut off": _cut("{host} broker", "{host} edge"),
    "clients cut off": _cut("front"),
    "edge frozen": _edge_frozen,
    "broker frozen": _broker_frozen,
    "runner frozen": _runner_frozen,
}
ON_SMALL_DISKS: Mapping[str, DisturbanceAction] = {
    "edge's disk full": _full("edge"),
    "host's disk full": _full("{host}"),
}


def draw_disturbance(dice: Random, kinds: tuple[str, ...], hosts: tuple[str, ...], *, long: bool) -> Disturbance:
    """Draw the next disturbance."""
    lasts = LONG_S if long and dice.random() < LONG_SHARE else SHORT_S
    pause = dice.uniform(MIN_PAUSE_S, MAX_PAUSE_S)
    return Disturbance(pause, dice.choice(kinds), dice.choice(hosts), dice.uniform(*lasts))


async def apply_disturbance(scene: ChaosInstallation, blow: Disturbance) -> None:
    """Wait for its pause, cause it, and undo it."""
    await anyio.sleep(blow.pause_s)
    await {**DISTURBANCES, **ON_SMALL_DISKS}[blow.kind](scene, blow)
