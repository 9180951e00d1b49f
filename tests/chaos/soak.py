"""Mixed load in fair weather for a long time, and whether anything grows: `python -m tests.chaos.soak --minutes N`.

Rounds of jobs as in the storm, each to its last end; between them, when all is calm, every process is measured. What
the first third of the rounds takes is warming up (caches, pools, the last runs that estimates remember).
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

HOST_NAMES = ("gpu-1", "gpu-2")
ROUND = 24  # jobs, all at once
WARM = 3  # one third
LOW = 6  # of a sixth of the samples the lowest RSS counts: nats-server's wanders by half of itself between collections
RSS_MB = 12.0  # that a process may wander by: allocators keep what they once had
RSS_KB_A_JOB = 8.0  # what the index and its caches may add; a leak of one response a job would be more
HANDLES = 8  # connections come and go
INDEX_KB_A_JOB = 16.0  # a record and its rows are some 4 KB


class SoakSample(Struct, frozen=True):
    """What there was in a calm moment after `jobs` jobs. `rss_mb` and `handles` by process."""

    jobs: int
    rss_mb: dict[str, float]
    handles: dict[str, int]
    consumers: int
    containers: int
    index_kb: float


class SoakReport(Struct, frozen=True):
    """Every sample, what grew, and every promise that was not kept."""

    samples: Sequence[SoakSample]
    leaks: Sequence[str]
    violations: Sequence[Violation]


def find_leaks(samples: Sequence[SoakSample]) -> list[str]:
    """What grew between the first warm sample and the last by more than its bound, in words."""
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
    """The least RSS of each process: what has leaked is there at the lowest moment too."""
    return {name: min(sample.rss_mb[name] for sample in samples) for name in samples[0].rss_mb}


async def run_soak(folder: Path, seconds: float, seed: int) -> SoakReport:
    """Rounds of jobs for `seconds`, three at least, then everybody's end, then the checker."""
    samples: list[SoakSample] = []
    async with run_chaos_installation(folder, hosts=HOST_NAMES) as scene:
        for host in HOST_NAMES:
            await scene.start_runner(host)
        until = time.monotonic() + seconds
        numbers = count(1)
        while time.monotonic() < until or len(samples) < WARM + 1:
            await _round(scene, [next(numbers) for _ in range(ROUND)], seed)
            await scene.wait_until_clean()
            samples.append(await _measure(scene, len(samples) * ROUND + ROUND))
            click.echo(f"soak: {samples[-1]}", err=True)
        return SoakReport(samples, find_leaks(samples), check(await scene.evidence()))


async def _round(scene: ChaosInstallation, numbers: Sequence[int], seed: int) -> None:
    async with anyio.create_task_group() as owners:
        for number in numbers:
            owners.start_soon(play_job_plan, scene, draw_job_plan(Random(f"{seed} job {number}"), number))


async def _measure(scene: ChaosInstallation, jobs: int) -> SoakSample:
    made = scene.installation
    pids = {"edge": made.edge.pid, "broker": made.server.pid or 0}
    pids |= {host: process.pid for host, process in made.runners.items()}
    return SoakSample(
        jobs=jobs,
        rss_mb={name: _rss_mb(pid) for name, pid in pids.items()},
        handles={name: _handles(pid) for name, pid in pids.items()},
        consumers=await list_ephemeral_consumers(scene.bus),
        containers=sum([len(await made.containers(host)) for host in HOST_NAMES]),
        index_kb=_index_kb(made.folder / "edge"),
    )


def _rss_mb(pid: int) -> float:
    """VmRSS of proc(5)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def _index_kb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.glob("index.sqlite*")) / 1024


def _handles(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def main() -> int:
    """Say what there was; 1 when something grew or a promise was broken."""
    given = parse_run_options("soak", "Mixed load for a long time, and whether anything grows.", 60)
    with TemporaryDirectory(prefix="soak-") as folder:
        report = anyio.run(run_soak, Path(folder), given.seconds, given.seed)
    for line in (*report.leaks, *(f"{violation.rule}: {violation.what}" for violation in report.violations)):
        click.echo(f"BROKEN {line}")
    click.echo(f"soak: {report.samples[-1].jobs} jobs in {len(report.samples)} rounds")
    return 1 if report.leaks or report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
