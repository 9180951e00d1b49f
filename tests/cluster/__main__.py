"""Blows upon a cluster for as long as you like: `python -m tests.cluster --minutes N [--seed S]`."""

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
from tests.chaos.command import asked
from tests.cluster.blows import BLOWS, Heard, Load, strike
from tests.cluster.cluster import COUNT, lit
from tests.cluster.machines import Machine, machines

PATIENCE_S = 240.0  # for the last job to end once all is calm


class Report(Struct, frozen=True):
    """How many jobs ended, what was heard at each blow, and every promise that was not kept."""

    jobs: int
    heard: Sequence[Heard]
    violations: Sequence[Violation]


async def play(folder: Path, there: Sequence[Machine], blows: Callable[[Random], str | None], seed: int) -> Report:
    """Load and blows until `blows` names none, then everybody's end, then the checker."""
    dice = Random(seed)
    async with lit(folder, there) as (cluster, bus):
        heard = []
        load = Load(cluster, Random(f"{seed} jobs"))
        try:
            async with anyio.create_task_group() as owners:
                load.start(owners)
                while (name := blows(dice)) is not None:
                    heard.append(await strike(name, cluster, bus, load, dice))
                    click.echo(f"cluster: {said(heard[-1])}")
                load.stop()
                owners.cancel_scope.deadline = anyio.current_time() + PATIENCE_S
            return Report(load.ended.count, heard, check(await cluster.evidence(bus)))
        except BaseException:
            click.echo(cluster.tail(), err=True)
            raise


def said(heard: Heard) -> str:
    """For people."""
    return f"{heard.blow}: longest gap {heard.accepted_s:.1f} s between 202s, {heard.ended_s:.1f} s between results"


def main() -> int:
    """Say what there was; 1 when a promise was broken."""
    given = asked("cluster", "Three brokers, two edges, three runners, and what befalls them.", 10)
    ends = time.monotonic() + given.seconds

    def blows(dice: Random) -> str | None:
        return dice.choice(sorted(BLOWS)) if time.monotonic() < ends else None

    with TemporaryDirectory(prefix="cluster-") as folder, machines(COUNT) as there:
        report = anyio.run(play, Path(folder), there, blows, given.seed)
    click.echo(f"cluster: {report.jobs} jobs, {len(report.heard)} blows")
    for violation in report.violations:
        click.echo(f"BROKEN {violation.rule}: {violation.what}")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
