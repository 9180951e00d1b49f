"""Many jobs of which some crash: `python -m tests.broken.job_flood --jobs 10000`. Real processes, process engine.

Every twentieth job kills its own process. Each of those must fail after its attempts, all others must succeed at the
first attempt, and nothing may be left.
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

import anyio
from msgspec import Struct

from schemas.job import FINAL_STATUSES
from schemas.job_view import JobView
from tests.support.installation import IMAGES, RunningInstallation, run_new_installation
from tests.support.job_checks import submit_job, wait_until_clean
from tests.support.wait import wait_for

CRASH_INTERVAL_JOBS = 20  # one job of so many crashes: 5 %
SENDERS = 8
SLOTS = 8
ATTEMPTS = 2
JOB_S = 2.0  # time limit for each job, on a busy machine


class FloodTally(Struct, frozen=True):
    """How many jobs ended how: (crashes, status, code, attempt)."""

    ends: Counter[tuple[bool, str, str | None, int]]

    def wrong(self, jobs: int) -> dict[tuple[bool, str, str | None, int], int]:
        """Return which ends are too many, or (below 0) too few."""
        crashing = len(range(0, jobs, CRASH_INTERVAL_JOBS))
        found = Counter(self.ends)
        found.subtract(
            {
                (True, "failed", "internal", ATTEMPTS): crashing,
                (False, "succeeded", None, 1): jobs - crashing,
            }
        )
        return {end: count for end, count in found.items() if count}


def end_of(job: JobView, *, crashes: bool) -> tuple[bool, str, str | None, int]:
    return crashes, job.status, job.error.code if job.error else None, job.attempt


async def run_flood(running: RunningInstallation, jobs: int) -> FloodTally:
    """Submit the jobs, wait until all have ended, and count the ends. Raises TimeoutError or AssertionError."""
    crashing: dict[str, bool] = {}
    numbers = iter(range(jobs))

    async def send() -> None:
        for number in numbers:
            crashes = number % CRASH_INTERVAL_JOBS == 0
            behave = "segv" if crashes else "ok"
            job = await submit_job(running, {"max_attempts": ATTEMPTS}, behave=behave, steps=1, text=str(number))
            crashing[job.id] = crashes

    async with anyio.create_task_group() as tasks:
        for _ in range(SENDERS):
            tasks.start_soon(send)

    async def over() -> list[JobView]:
        found = [job async for job in running.ann.jobs(limit=200)]
        print(f"{sum(job.status in FINAL_STATUSES for job in found)} of {len(found)} have ended", file=sys.stderr)  # noqa: T201
        return found if len(found) == jobs and all(job.status in FINAL_STATUSES for job in found) else []

    found = await wait_for(over, timeout_s=60 + jobs * JOB_S, interval_s=max(0.5, jobs / 300))
    await wait_until_clean(running, timeout_s=60)
    return FloodTally(Counter(end_of(job, crashes=crashing[job.id]) for job in found))


async def main(jobs: int) -> None:
    with tempfile.TemporaryDirectory(prefix="lamplighter-many-") as folder:
        async with run_new_installation(Path(folder), "process", None) as running:
            await running.installation.start_runner(endpoints=(IMAGES / "echo",), LAMPLIGHTER_SLOTS=str(SLOTS))
            began = anyio.current_time()
            tally = await run_flood(running, jobs)
            for (crashes, status, code, attempt), count in sorted(tally.ends.items(), key=str):
                kind = "crashing" if crashes else "sound"
                print(f"{count:6} {kind}: {status} {code or ''} at attempt {attempt}")  # noqa: T201
            print(f"{jobs} jobs in {anyio.current_time() - began:.0f} s")  # noqa: T201
            if wrong := tally.wrong(jobs):
                raise SystemExit(f"not as promised: {wrong}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.broken.job_flood", description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    anyio.run(main, parser.parse_args().jobs)
