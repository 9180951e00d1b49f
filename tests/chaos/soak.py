"""Mixed load without faults for a long time, to see whether anything grows: `python -m tests.chaos.soak --minutes N`.

It runs rounds of jobs as the storm does; between them, when all jobs have ended, every process is measured. Growth in
the first third of the rounds is not counted: caches and pools fill, and estimates collect their samples.
"""

import sys
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import anyio
import click
from msgspec import Struct

from tests.chaos.chaos_installation import ChaosInstallation, run_chaos_installation
from tests.chaos.checker import Violation, check
from tests.chaos.job_plans import draw_job_plan, play_job_plan
from tests.chaos.leftovers import list_ephemeral_consumers
from tests.chaos.run_options import parse_run_options
from tests.support.installation import process_memory_mb

HOST_NAMES = ("gpu-1", "gpu-2")
ROUND = 24  # jobs, all at the same time
WARM = 3  # one third of the samples is not counted
LOW = 6  # of a sixth of the samples the lowest RSS counts: nats-server's halves at each collection
RSS_MB = 12.0  # of normal variation: allocators keep memory that they once had
RSS_KB_A_JOB = 8.0  # of the index and its caches; a leak of one response a job would be more
HANDLES = 8  # of normal variation: connections open and close
INDEX_KB_A_JOB = 16.0  # a record and its rows are some 4 KB


class SoakSample(Struct, frozen=True):
    """The measurements after `jobs` jobs, with no job running. `rss_mb` and `handles` by process."""

    jobs: int
    rss_mb: dict[str, float]
    handles: dict[str, int]
    consumers: int
    containers: int
    index_kb: float


class SoakReport(Struct, frozen=True):
    """Every sample, what grew, and every broken promise."""

    samples: Sequence[SoakSample]
    leaks: Sequence[str]
    violations: Sequence[Violation]


def find_leaks(samples: Sequence[SoakSample]) -> list[str]:
    """Return in words what grew between the first counted sample and the last by more than its bound."""
    warm, some = len(samples) // WARM, max(1, len(samples) // LOW)
    first, last = samples[warm], samples[-1]
    jobs = last.jobs - first.jobs
    early, late = _lowest(samples[warm : warm + some]), _lowest(samples[-some:])
    rows = [
        *((f"{name} RSS, MB", mb, late[name], RSS_MB + jobs * RSS_KB_A_JOB / 1024) for name, mb in early.items()),
        *((f"{name} descriptors", had, last.handles[name], HANDLES) for name, had in first.handles.items()),
        ("consumers", first.consumers, last.consumers, 0),
        ("containers", first.containers, last.containers, 0),
        ("index, KB", first.index_kb, last.index_kb, jobs * INDEX_KB_A_JOB),
    ]
    return [f"{what}: {had:g}, then {has:g}" for what, had, has, more in rows if has - had > more]


def _lowest(samples: Sequence[SoakSample]) -> dict[str, float]:
    """Return the least RSS of each process: leaked memory is still there at the lowest moment."""
    return {name: min(sample.rss_mb[name] for sample in samples) for name in samples[0].rss_mb}


async def run_soak(folder: Path, seconds: float, seed: int) -> SoakReport:
    """Run rounds of jobs for `seconds`, three at least, then wait for the end of all, then check."""
    samples: list[SoakSample] = []
    async with run_chaos_installation(folder, hosts=HOST_NAMES) as chaos:
        for host in HOST_NAMES:
            await chaos.start_runner(host)
        until = time.monotonic() + seconds
        numbers = count(1)
        while time.monotonic() < until or len(samples) < WARM + 1:
            await _round(chaos, [next(numbers) for _ in range(ROUND)], seed)
            await chaos.wait_until_clean()
            samples.append(await _measure(chaos, len(samples) * ROUND + ROUND))
            click.echo(f"soak: {samples[-1]}", err=True)
        return SoakReport(samples, find_leaks(samples), check(await chaos.evidence()))


async def _round(chaos: ChaosInstallation, numbers: Sequence[int], seed: int) -> None:
    async with anyio.create_task_group() as owners:
        for number in numbers:
            owners.start_soon(play_job_plan, chaos, draw_job_plan(Random(f"{seed} job {number}"), number))


async def _measure(chaos: ChaosInstallation, jobs: int) -> SoakSample:
    made = chaos.installation
    pids = {"edge": made.edge.pid, "broker": made.server.pid or 0}
    pids |= {host: process.pid for host, process in made.runners.items()}
    return SoakSample(
        jobs=jobs,
        rss_mb={name: process_memory_mb(pid) for name, pid in pids.items()},
        handles={name: _handles(pid) for name, pid in pids.items()},
        consumers=await list_ephemeral_consumers(chaos.bus),
        containers=sum([len(await made.containers(host)) for host in HOST_NAMES]),
        index_kb=_index_kb(made.folder / "edge"),
    )


def _index_kb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.glob("index.sqlite*")) / 1024


def _handles(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def main() -> int:
    """Print the report. Exits with 1 when something grew or a promise was broken."""
    given = parse_run_options("soak", "Mixed load for a long time, and whether anything grows.", 60)
    with TemporaryDirectory(prefix="soak-") as folder:
        report = anyio.run(run_soak, Path(folder), given.seconds, given.seed)
    for line in (*report.leaks, *(f"{violation.rule}: {violation.what}" for violation in report.violations)):
        click.echo(f"BROKEN {line}")
    click.echo(f"soak: {report.samples[-1].jobs} jobs in {len(report.samples)} rounds")
    return 1 if report.leaks or report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
