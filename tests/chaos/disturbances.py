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
    duration_s: float


DisturbanceAction = Callable[[ChaosInstallation, Disturbance], Awaitable[None]]


async def _edge_killed(chaos: ChaosInstallation, disturbance: Disturbance) -> None:
    await chaos.installation.edge.kill()
    await anyio.sleep(disturbance.duration_s)
    await chaos.start_edge()


async def _broker_killed(chaos: ChaosInstallation, disturbance: Disturbance) -> None:
    await chaos.installation.server.kill()
    await anyio.sleep(disturbance.duration_s)
    await chaos.installation.server.start()


async def _runner_killed(chaos: ChaosInstallation, disturbance: Disturbance) -> None:
    async with chaos.excuse_outage(disturbance.host):
        await chaos.process("runner", disturbance.host).kill()
        await anyio.sleep(disturbance.duration_s)
        await chaos.start_runner(disturbance.host)


async def _jobs_killed(chaos: ChaosInstallation, disturbance: Disturbance) -> None:
    await kill_jobs(chaos, disturbance.host)


def _cut(*names: str) -> DisturbanceAction:
    async def cut(chaos: ChaosInstallation, disturbance: Disturbance) -> None:
        proxies = [chaos.proxies[name.format(host=disturbance.host)] for name in names]
        async with chaos.excuse_outage(disturbance.host):
            for proxy in proxies:
                proxy.cut()
            await anyio.sleep(disturbance.duration_s)
            for proxy in proxies:
                proxy.heal()

    return cut


async def _frozen(chaos: ChaosInstallation, disturbance: Disturbance, pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    await anyio.sleep(disturbance.duration_s)
    continue_process(pid)


async def _edge_frozen(chaos: ChaosInstallation, disturbance: Disturbance) -> None:
    await _frozen(chaos, disturbance, chaos.installation.edge.pid)


async def _broker_frozen(chaos: ChaosInstallation, disturbance: Disturbance) -> None:
    await _frozen(chaos, disturbance, chaos.installation.server.pid or 0)


async def _runner_frozen(chaos: ChaosInstallation, disturbance: Disturbance) -> None:
    async with chaos.excuse_outage(disturbance.host):
        await _frozen(chaos, disturbance, chaos.process("runner", disturbance.host).pid)


def _full(place: str) -> DisturbanceAction:
    async def full(chaos: ChaosInstallation, disturbance: Disturbance) -> None:
        ballast = await anyio.to_thread.run_sync(fill_disk, _folder(chaos, place, disturbance))
        await anyio.sleep(disturbance.duration_s)
        await anyio.to_thread.run_sync(ballast.unlink)

    return full


def _folder(chaos: ChaosInstallation, place: str, disturbance: Disturbance) -> Path:
    return chaos.installation.folder / place.format(host=disturbance.host)


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


def draw_disturbance(rng: Random, kinds: tuple[str, ...], hosts: tuple[str, ...], *, long: bool) -> Disturbance:
    """Draw the next disturbance."""
    lasts = LONG_S if long and rng.random() < LONG_SHARE else SHORT_S
    pause = rng.uniform(MIN_PAUSE_S, MAX_PAUSE_S)
    return Disturbance(pause, rng.choice(kinds), rng.choice(hosts), rng.uniform(*lasts))


async def apply_disturbance(chaos: ChaosInstallation, disturbance: Disturbance) -> None:
    """Wait for its pause, cause it, and undo it."""
    await anyio.sleep(disturbance.pause_s)
    await {**DISTURBANCES, **ON_SMALL_DISKS}[disturbance.kind](chaos, disturbance)
