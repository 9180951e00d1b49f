"""Jobs under random disturbances, then a check of all promises: `python -m tests.chaos.storm --minutes N`."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import anyio
import click
from msgspec import Struct

from tests.chaos.chaos_installation import ChaosInstallation, run_chaos_installation
from tests.chaos.checker import Violation, check
from tests.chaos.disturbances import DISTURBANCES, ON_SMALL_DISKS, apply_disturbance, draw_disturbance
from tests.chaos.job_plans import SUBMIT_INTERVAL_S, draw_job_plan, play_job_plan
from tests.chaos.run_options import parse_run_options
from tests.support import small_disk

HOSTS = ("gpu-1", "gpu-2")
DISK_MB = 96
LONG_RUN_S = 300.0  # longer runs have partitions that outlast a lease
OWNERS_TIMEOUT_S = 240.0  # for the last job to end after the last disturbance
OWNERS_LIMIT = 24


class StormReport(Struct, frozen=True):
    """How many jobs and disturbances of each kind there were, and every broken promise."""

    jobs: int
    counts: dict[str, int]
    violations: Sequence[Violation]


@contextmanager
def small_disks(folder: Path) -> Iterator[tuple[str, ...]]:
    """Yield the possible disturbances. Where disks cannot be mounted, none is filled, and that is printed."""
    with ExitStack() as mounted:
        if why := small_disk.why_no_mounts():
            click.echo(f"storm: no disk is filled: {why}", err=True)
            yield tuple(DISTURBANCES)
            return
        for name in ("edge", *HOSTS):
            mounted.enter_context(small_disk.mount_small_disk(folder / name, DISK_MB))
        yield (*DISTURBANCES, *ON_SMALL_DISKS)


async def run_storm(folder: Path, seconds: float, seed: int) -> StormReport:
    """Run jobs and disturbances for `seconds`, in `folder`, then wait for the end of all, then check."""
    with small_disks(folder) as kinds:
        async with run_chaos_installation(folder, hosts=HOSTS) as chaos:
            for host in HOSTS:
                await chaos.start_runner(host)
            try:
                jobs, counts = await _play_until(chaos, seconds, seed, kinds)
                return StormReport(jobs, counts, check(await chaos.evidence()))
            except BaseException:
                click.echo(chaos.installation.tail(), err=True)
                raise


async def _play_until(
    chaos: ChaosInstallation, seconds: float, seed: int, kinds: tuple[str, ...]
) -> tuple[int, dict[str, int]]:
    """Return the number of jobs, and of disturbances by kind, once every owner has seen the end of its job."""
    until = time.monotonic() + seconds
    counts = dict.fromkeys(kinds, 0)
    jobs = 0

    async def disturb() -> None:
        rng = Random(f"{seed} weather")
        while time.monotonic() < until:
            disturbance = draw_disturbance(rng, kinds, HOSTS, long=seconds >= LONG_RUN_S)
            await apply_disturbance(chaos, disturbance)
            counts[disturbance.kind] += 1

    async with anyio.create_task_group() as owners:
        rng = Random(f"{seed} jobs")
        limiter = anyio.Semaphore(OWNERS_LIMIT)

        async def owner(number: int) -> None:
            async with limiter:
                await play_job_plan(chaos, draw_job_plan(Random(f"{seed} job {number}"), number))

        async with anyio.create_task_group() as disturbances:
            disturbances.start_soon(disturb)
            while time.monotonic() < until:
                jobs += 1
                owners.start_soon(owner, jobs)
                await anyio.sleep(rng.uniform(*SUBMIT_INTERVAL_S))
        owners.cancel_scope.deadline = anyio.current_time() + OWNERS_TIMEOUT_S
    if owners.cancel_scope.cancelled_caught:
        click.echo(f"storm: an owner still waited for its job after {OWNERS_TIMEOUT_S:g} s", err=True)
    return jobs, counts


def main() -> int:
    """Print the report. Exits with 1 when a promise was broken, with the seed that reproduces it."""
    given = parse_run_options("storm", "Run jobs under random disturbances, and check the promises.", 10)
    with TemporaryDirectory(prefix="storm-") as folder:
        report = anyio.run(run_storm, Path(folder), given.seconds, given.seed)
    click.echo(f"storm: {report.jobs} jobs; " + ", ".join(f"{kind} {count}" for kind, count in report.counts.items()))
    for violation in report.violations:
        click.echo(f"BROKEN {violation.rule}: {violation.what}")
    if report.violations:
        click.echo(f"reproduce it with: just chaos --minutes {given.minutes:g} --seed {given.seed}")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
