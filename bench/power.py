"""Measure powering on with real processes: 202 → `on` call; a host's first heartbeat → claim → first line of the job.

The `on` call runs a program that records its start time, so that figure includes the start of a process. The runner
stamps heartbeat and claim, the job itself stamps its first line. All use the clock of one machine.
"""

import json
import tempfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from time import time
from typing import NamedTuple

from bench.figures import Figure, p50, p99
from bench.installation import (
    BenchInstallation,
    docker_missing_figure,
    run_installation,
    wait_or_exit,
    wait_until_succeeded,
)
from bus.interface import Bus
from schemas.power import PowerRecord, PowerState
from tests.support.installation import IMAGES
from tests.support.wait import wait_for

STARTS, BOOTS = 100, 10
HOST = "gpu-1"
ECHO = (IMAGES / "echo",)


def _declare_hosts(pressed: Path, number: int) -> dict[str, str]:
    """Return the edge's environment that declares hosts whose `on` program only writes the time to `pressed`."""
    host = {"driver": "command", "on": ["/bin/sh", "-c", f"date +%s.%N >> {pressed}"], "off": ["true"]}
    hosts = {HOST: host | {"state": ["false"]}} | {
        f"other-{other}": host | {"state": ["false"], "wake_priority": 2} for other in range(1, number)
    }
    return {"LAMPLIGHTER_HOSTS": json.dumps(hosts)}


def _stamps(log: Path) -> list[float]:
    return [float(line) for line in log.read_text().splitlines()]


async def _measure_power_call(made: BenchInstallation, bus: Bus, log: Path) -> float:
    """Return the seconds from a 202 to the start of the `on` program. The host is off again afterwards."""
    before = len(_stamps(log))
    job = await made.client.submit("echo", text="wake up")
    accepted = time()

    async def came() -> bool:
        return len(_stamps(log)) > before

    await wait_for(came, timeout_s=30, interval_s=0.01)
    await made.client.cancel(job.id)
    await bus.power_records.put(HOST, PowerRecord(state=PowerState.OFF, since=datetime.now(UTC)))
    return _stamps(log)[before] - accepted


class _WakeTimes(NamedTuple):
    """Times of one wake, in seconds after the first heartbeat."""

    claim: float
    line: float


async def _measure_wake(made: BenchInstallation, bus: Bus) -> _WakeTimes:
    """Submit a job, start the runner, wait until it has run the job, and stop it. Return the times."""
    job = await made.client.submit("echo", text="waiting")
    await made.installation.start_runner(HOST, endpoints=ECHO)

    async def beats() -> float | None:
        row = await bus.heartbeats.get(HOST)
        return row.value.at.timestamp() if row else None

    heartbeat: float = await wait_or_exit(made, beats, "the first heartbeat of the host is", interval_s=0.01)
    done = await wait_until_succeeded(made, job.id)
    said = await made.client.logs(job.id)
    await made.installation.runners[HOST].stop()
    assert done.started_at is not None
    line = float(said.split("first line of job code at ")[1].split()[0])
    return _WakeTimes(done.started_at.timestamp() - heartbeat, line - heartbeat)


async def measure_starts(bench: str, hosts: int = 1) -> AsyncIterator[Figure]:
    """Measure the time from a 202 to the start of the `on` program, with so many declared hosts."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "pressed"
        log.touch()
        async with run_installation(**_declare_hosts(log, hosts)) as made, made.installation.bus() as bus:
            taken = [await _measure_power_call(made, bus, log) for _ in range(STARTS)]
    where = "" if hosts == 1 else f", {hosts} declared hosts"
    yield Figure(bench, f"202 → switch pressed{where}, p50", p50(taken) * 1e3, "ms")
    yield Figure(bench, f"202 → switch pressed{where}, p99", p99(taken) * 1e3, "ms", 100)


async def _boots(engine: str) -> AsyncIterator[Figure]:
    async with run_installation(engine) as made, made.installation.bus() as bus:
        woken = [await _measure_wake(made, bus) for _ in range(BOOTS)]
    most = max(one.claim for one in woken)
    note = f"longest of {BOOTS}: {most * 1e3:.0f} ms"
    yield Figure("power", f"heartbeat → claim, {engine}", p50([one.claim for one in woken]) * 1e3, "ms", 200, note=note)
    note = f"longest of {BOOTS}: {max(one.line for one in woken) * 1e3:.0f} ms"
    line = p50([one.line for one in woken])
    yield Figure("power", f"heartbeat → first line, {engine} cold", line * 1e3, "ms", 1000, note=note)


async def rows() -> AsyncIterator[Figure]:
    """Measure the `on` call, then a waking host with each engine of this machine."""
    async for row in measure_starts("power"):
        yield row
    async for row in _boots("process"):
        yield row
    if left_out := docker_missing_figure("power"):
        yield left_out
        return
    async for row in _boots("docker"):
        yield row
