"""Measure 202 → first line of the job: a cold Docker start, a bare `docker run` of the same image, the process engine.

The job stamps its first line itself (CLOCK_REALTIME, one machine): echo writes the time to its log.
"""

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator

from bench.figures import Figure, p50
from bench.installation import IMAGE, BenchInstallation, docker_missing_figure, run_installation, wait_until_succeeded

RUNS = 20
AIM = 1.15
STAMP = "import time; print(time.time(), flush=True)"


async def first_line_s(made: BenchInstallation) -> float:
    """Submit a job, and return the seconds from the 202 to its first line."""
    job = await made.client.submit("echo", text="hello")
    accepted = time.time()
    await wait_until_succeeded(made, job.id)
    return float((await made.client.logs(job.id)).split("first line of job code at ")[1].split()[0]) - accepted


def _docker_run_s() -> float:
    """Return the seconds from `docker run`, hardened as ours, to the first line of Python in the container."""
    hardening = ["--network", "none", "--read-only", "--cap-drop", "ALL", "--init", "--tmpfs", "/tmp"]
    argv = ["docker", "run", "--rm", *hardening, "--entrypoint", "python3", IMAGE, "-c", STAMP]
    began = time.time()
    said = subprocess.run(argv, capture_output=True, text=True, check=True)
    return float(said.stdout) - began


async def rows() -> AsyncIterator[Figure]:
    """Yield medians. Our starts and bare runs alternate, so that noise on the machine affects both."""
    async with run_installation("process") as made:
        await made.installation.start_runner()
        await first_line_s(made)
        process = p50([await first_line_s(made) for _ in range(RUNS)])
        yield Figure("start", "202 → first line, process engine", process * 1e3, "ms")
    if left_out := docker_missing_figure("start"):
        yield left_out
        return
    async with run_installation("docker") as made:
        await made.installation.start_runner()
        await first_line_s(made)
        ours, bare = [], []
        for _ in range(RUNS):
            ours.append(await first_line_s(made))
            bare.append(await asyncio.to_thread(_docker_run_s))
        note = f"bare docker run {p50(bare) * 1e3:.0f} ms"
        yield Figure("start", "202 → first line, docker cold", p50(ours) * 1e3, "ms", note=note)
        yield Figure("start", "docker cold against bare docker run", p50(ours) / p50(bare), "x", AIM)
