"""Failures in a cluster under load, for as long as asked: `python -m tests.cluster --minutes N [--seed S]`."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import anyio
import click
from msgspec import Struct

from tests.chaos.checker import Violation, check
from tests.chaos.run_options import parse_run_options
from tests.cluster.cluster_installation import COUNT, run_cluster
from tests.cluster.failures import CLUSTER_FAILURES, ClusterLoad, ServiceGaps, apply_failure
from tests.cluster.namespace_machines import NamespaceMachine, create_machines

OWNERS_TIMEOUT_S = 240.0  # for the last job to end after the last failure


class ClusterReport(Struct, frozen=True):
    """How many jobs ended, the gaps at each failure, and every broken promise."""

    jobs: int
    gaps: Sequence[ServiceGaps]
    violations: Sequence[Violation]


async def play(
    folder: Path, machines: Sequence[NamespaceMachine], next_failure: Callable[[Random], str | None], seed: int
) -> ClusterReport:
    """Run load and failures until `next_failure` returns None, wait for the end of all jobs, and check."""
    rng = Random(seed)
    async with run_cluster(folder, machines) as (cluster, bus):
        gaps = []
        load = ClusterLoad(cluster, Random(f"{seed} jobs"))
        try:
            async with anyio.create_task_group() as owners:
                load.start(owners)
                while (name := next_failure(rng)) is not None:
                    gaps.append(await apply_failure(name, cluster, bus, load, rng))
                    click.echo(f"cluster: {describe_gaps(gaps[-1])}")
                load.stop()
                owners.cancel_scope.deadline = anyio.current_time() + OWNERS_TIMEOUT_S
            return ClusterReport(load.ended.count, gaps, check(await cluster.evidence(bus)))
        except BaseException:
            click.echo(cluster.tail(), err=True)
            raise


def describe_gaps(gaps: ServiceGaps) -> str:
    """Describe the gaps in one line."""
    return f"{gaps.failure}: longest gap {gaps.accepted_s:.1f} s between 202s, {gaps.ended_s:.1f} s between results"


def main() -> int:
    """Print the report. Exits with 1 when a promise was broken."""
    given = parse_run_options("cluster", "Run three brokers, two edges and three runners through failures.", 10)
    ends = time.monotonic() + given.seconds

    def next_failure(rng: Random) -> str | None:
        return rng.choice(sorted(CLUSTER_FAILURES)) if time.monotonic() < ends else None

    with TemporaryDirectory(prefix="cluster-") as folder, create_machines(COUNT) as machines:
        report = anyio.run(play, Path(folder), machines, next_failure, given.seed)
    click.echo(f"cluster: {report.jobs} jobs, {len(report.gaps)} failures")
    for violation in report.violations:
        click.echo(f"BROKEN {violation.rule}: {violation.what}")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
