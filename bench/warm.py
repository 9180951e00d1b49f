"""Measure warm slots: the start, the gap between two jobs on one slot, and many short jobs.

The start (202 → first line of the job) is compared to cold starts of the same run, the short jobs to as many bare
`docker run`. Echo stamps its first line itself (CLOCK_REALTIME, one machine).
"""

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from itertools import pairwise

import msgspec

from bench.figures import Figure, p50
from bench.http_load import post_request, run_load
from bench.installation import (
    IMAGE,
    BenchInstallation,
    docker_missing_figure,
    run_installation,
    wait_or_exit,
    wait_until_succeeded,
)
from schemas.host import HostHeartbeat
from tests.support.installation import IMAGES
from tests.support.wait import wait_for

RUNS = 20
WRITES = 50
PAIRED = 8
LONG_S = 1.5  # a job of this length gives the next container enough time to load
SHORT = 500
SLOTS = 4
ECHO = (IMAGES / "echo",)
WARM = {"LAMPLIGHTER_WARM__ON": "1"}
BARE = ["docker", "run", "--rm", "--network", "none", "--entrypoint", "python3", IMAGE, "-c", "print()"]


async def _stamp(made: BenchInstallation, job_id: str) -> float:
    """Wait for the job's end, and return the Unix time of its first line."""
    await wait_until_succeeded(made, job_id)
    return float((await made.client.logs(job_id)).split("first line of job code at ")[1].split()[0])


async def _first_line(made: BenchInstallation) -> float:
    """Submit a job, and return the seconds from the 202 to its first line."""
    job = await made.client.submit("echo", text="hello")
    accepted = time.time()
    return await _stamp(made, job.id) - accepted


async def _wait_for_warm(made: BenchInstallation, count: int = 1) -> None:
    """Wait until a heartbeat sent after this call reports `count` loaded containers of echo."""
    since = datetime.now(UTC)
    async with made.installation.bus() as bus:

        async def ready() -> bool:
            row = await bus.heartbeats.get("gpu-1")
            return row is not None and row.value.at > since and sum(one.ready for one in row.value.warm) >= count

        await wait_or_exit(made, ready, "a container that waits for its job is")


async def _measure_synced_writes(made: BenchInstallation) -> float:
    """Return the seconds of the two writes between the 202 and the start: the pointer, and the claim in the record."""
    took = []
    async with made.installation.bus() as bus:
        for _ in range(WRITES):
            now = datetime.now(UTC)
            began = time.perf_counter()
            for host in ("bench-1", "bench-2"):
                await bus.heartbeats.put(host, HostHeartbeat(host=host, incarnation="b", at=now, since=now))
            took.append(time.perf_counter() - began)
    return p50(took)


async def _measure_gaps(made: BenchInstallation) -> list[float]:
    """Return the seconds from the end of one job's code to the first line of the next. All are queued at the start."""
    jobs = [await made.client.submit("echo", seconds=LONG_S) for _ in range(PAIRED)]
    stamps = sorted([await _stamp(made, job.id) for job in jobs])
    return [later - before - LONG_S for before, later in pairwise(stamps)]


async def _measure_short_jobs(made: BenchInstallation) -> float:
    """Return the seconds from the first submit to the end of the last of SHORT jobs."""
    body = msgspec.json.encode({"endpoint": "echo", "input": {"text": "x", "steps": 1}})
    began = time.perf_counter()
    await run_load(made.port, [post_request("/v1/jobs", made.key, body)] * SHORT, SLOTS)

    async def done() -> bool:
        return len([job.id async for job in made.client.jobs(limit=SHORT, status="succeeded")]) >= SHORT

    await wait_for(done, timeout_s=1200, interval_s=0.5)
    return time.perf_counter() - began


async def _bare_containers_s() -> float:
    """Return the seconds of SHORT bare `docker run`, SLOTS at a time."""
    left = iter(range(SHORT))

    async def worker() -> None:
        for _ in left:
            await asyncio.to_thread(subprocess.run, BARE, check=True, stdout=subprocess.DEVNULL)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(SLOTS):
            tasks.create_task(worker())
    return time.perf_counter() - began


async def _starts(engine: str) -> AsyncIterator[Figure]:
    async with run_installation(engine) as made:
        runner = await made.installation.start_runner(endpoints=ECHO, **WARM, LAMPLIGHTER_PACE__PRESENCE_S="0.5")
        await _first_line(made)
        warm = []
        for _ in range(RUNS):
            await _wait_for_warm(made)
            warm.append(await _first_line(made))
        writes = await _measure_synced_writes(made)
        await _wait_for_warm(made)
        gaps = await _measure_gaps(made)
        await runner.stop()
        await made.installation.start_runner(endpoints=ECHO)
        await _first_line(made)
        cold = p50([await _first_line(made) for _ in range(RUNS)])
    start = p50(warm)
    yield Figure("warm", f"202 → first line, {engine}, warm", start * 1e3, "ms", note=f"cold {cold * 1e3:.0f} ms")
    note = f"two synced writes {writes * 1e3:.1f} ms"
    yield Figure("warm", f"the same over the broker's writes, {engine}", (start - writes) * 1e3, "ms", 5, note=note)
    yield Figure("warm", f"cold against warm, {engine}", cold / start, "x", 50, least=True)
    yield Figure("warm", f"gap between two jobs on one slot, {engine}", p50(gaps) * 1e3, "ms", 60)


async def rows() -> AsyncIterator[Figure]:
    """Measure the process engine, then Docker if this machine has it."""
    async for row in _starts("process"):
        yield row
    if left_out := docker_missing_figure("warm"):
        yield left_out
        return
    async for row in _starts("docker"):
        yield row
    async with run_installation("docker") as made:
        count = str(SLOTS)
        sizes = {"LAMPLIGHTER_WARM__COUNT": count, "LAMPLIGHTER_SLOTS": count}
        await made.installation.start_runner(endpoints=ECHO, **WARM, **sizes)
        await _first_line(made)
        await _wait_for_warm(made, SLOTS)
        ours = await _measure_short_jobs(made)
    bare = await _bare_containers_s()
    note = f"{ours:.0f} s; bare docker run {bare:.0f} s"
    yield Figure(
        "warm", f"{SHORT} short jobs on {SLOTS} slots against bare docker run", ours / bare, "x", 1.0, note=note
    )
