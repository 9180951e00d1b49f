"""Measure reused containers: many short jobs behind a long load, on one slot, with reuse and without.

The program loads for LOAD_S and works for WORK_S, a tenth of the 20 s and 2 s of a real model. The gap is from the end
of one job's code to the first line of the next one, both by the job's own clock.
"""

import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

from bench.figures import Figure, p50, p99
from bench.installation import (
    BenchInstallation,
    docker_missing_figure,
    run_installation,
    wait_or_exit,
    wait_until_succeeded,
)
from lamplighter import api
from tests.support.docker_images import BASE_IMAGE, build_image
from tests.support.installation import IMAGES

LOAD_S, WORK_S = 2.0, 0.2
JOBS = 100
SINGLE_JOBS = 10  # without reuse each takes LOAD_S: the time of JOBS follows from these
NAME = "bench-reuse"
PROGRAM = f"""
import time
import jobkit

def load():
    time.sleep({LOAD_S})

def work(job, _):
    began = time.time()
    job.progress(0.0)
    time.sleep({WORK_S})
    return {{"began": began, "ended": time.time()}}

jobkit.run(work, load=load, reuse=True)
"""
ENDPOINT = f"""
name = "{NAME}"
image = "lamplighter-{NAME}"
[resources]
memory_mb = 128
disk_mb = 16
[process]
command = ["python3", "main.py"]
"""
DOCKERFILE = f"""
FROM {BASE_IMAGE}
COPY jobkit /app/jobkit
COPY main.py /app/main.py
RUN chmod -R a+rX /app
WORKDIR /app
CMD ["python3", "main.py"]
"""


def _write_image(folder: Path, reuse: bool) -> None:
    folder.chmod(0o755)
    (folder / "main.py").write_text(PROGRAM)
    (folder / "endpoint.toml").write_text(ENDPOINT + ("[reuse]\njobs = 1000\n" if reuse else ""))
    (folder / "Dockerfile").write_text(DOCKERFILE)
    shutil.copytree(IMAGES / "jobkit" / "jobkit", folder / "jobkit")


@asynccontextmanager
async def _serve(engine: str, *, reuse: bool) -> AsyncIterator[BenchInstallation]:
    with tempfile.TemporaryDirectory() as scratch:
        _write_image(Path(scratch), reuse)
        async with run_installation(engine) as made:
            if made.installation.docker_url is not None:
                build_image(made.installation.docker_url, f"lamplighter-{NAME}", scratch)
            warm = "1" if reuse else "0"
            await made.installation.start_runner(endpoints=(Path(scratch),), LAMPLIGHTER_WARM__ON=warm)

            async def offered() -> bool:
                listed = await made.client.call(api.get_json("/v1/endpoints"))
                return NAME in {endpoint["name"] for endpoint in listed["endpoints"]}

            await wait_or_exit(made, offered, f"the endpoint {NAME} is")
            yield made


async def _run_jobs(made: BenchInstallation, count: int) -> list[tuple[float, float]]:
    """Run so many jobs on one slot; return when each began and ended, in their order."""
    jobs = [await made.client.submit(NAME) for _ in range(count)]
    ended = [await wait_until_succeeded(made, job.id) for job in jobs]
    stamps = [job.output.data for job in ended if job.output is not None]
    return sorted((stamp["began"], stamp["ended"]) for stamp in stamps)


async def _jobs_per_hour(made: BenchInstallation, count: int) -> tuple[float, list[float]]:
    """Return the jobs per hour, from the first submit to the last end, and the gaps between jobs in seconds."""
    began = time.time()
    stamps = await _run_jobs(made, count)
    gaps = [later[0] - before[1] for before, later in pairwise(stamps)]
    return count * 3600 / (stamps[-1][1] - began), gaps


async def _measure(engine: str) -> AsyncIterator[Figure]:
    async with _serve(engine, reuse=False) as made:
        single, _ = await _jobs_per_hour(made, SINGLE_JOBS)
    async with _serve(engine, reuse=True) as made:
        reused, gaps = await _jobs_per_hour(made, JOBS)
    note = f"{reused:.0f} and {single:.0f} jobs per hour; load {LOAD_S:g} s, work {WORK_S:g} s"
    yield Figure("images", f"jobs per hour, reuse against single use, {engine}", reused / single, "x", 8, True, note)
    note = f"p99 {p99(gaps) * 1e3:.0f} ms"
    yield Figure("images", f"gap between two reused jobs, {engine}", p50(gaps) * 1e3, "ms", 15, note=note)


async def rows() -> AsyncIterator[Figure]:
    """Measure the process engine, then Docker if this machine has it."""
    async for row in _measure("process"):
        yield row
    if left_out := docker_missing_figure("images"):
        yield left_out
        return
    async for row in _measure("docker"):
        yield row
