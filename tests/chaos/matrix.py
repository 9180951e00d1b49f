"""The whole crash matrix, and its table for docs/promises.md: `python -m tests.chaos.matrix [--write | --only WORD]`.

There are four stages, since not everything can be killed on each: processes, Docker with live-restore, Docker without,
and a host with a power switch. A stage plays its cells one after the other; the stages run at the same time.
"""

import argparse
import logging
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import click
import structlog
from msgspec import Struct

from tests.chaos.checker import Violation, check
from tests.chaos.crash_cells import BY_NAME, CellOutcome, play_cell, run_stage
from tests.chaos.crash_steps import DOCKER, STEPS, CrashCell, cells
from tests.chaos.fault_points import CallSide
from tests.chaos.kill_targets import KILL_TARGETS
from tests.support.docker_engine import OwnDockerEngine, run_docker_engine
from tests.support.installation import ROOT

PAGE = ROOT / "docs" / "promises.md"
BEGIN, END = "<!-- matrix: just chaos-matrix -->\n", "<!-- end of matrix -->\n"


class MatrixStage(Struct, frozen=True):
    """`live_restore` None: no Docker. `switched`: the host has a power switch."""

    live_restore: bool | None = None
    switched: bool = False

    def has(self, cell: CrashCell) -> bool:
        """Return whether the cell is played on this stage."""
        if BY_NAME[cell.step].switched or self.switched:
            return self.switched and BY_NAME[cell.step].switched
        here = {None: ("edge", "broker", "runner", "process"), True: ("container", DOCKER[0]), False: (DOCKER[1],)}
        return cell.target in here[self.live_restore]

    @contextmanager
    def engine(self) -> Iterator[OwnDockerEngine | None]:
        """Run the Docker engine of the stage, if it has one."""
        with (
            nullcontext() if self.live_restore is None else run_docker_engine(live_restore=self.live_restore) as engine
        ):
            yield engine


STAGES: Mapping[str, MatrixStage] = {
    "processes": MatrixStage(),
    "docker": MatrixStage(live_restore=True),
    "docker, no live-restore": MatrixStage(live_restore=False),
    "switch": MatrixStage(switched=True),
}


class StageReport(Struct, frozen=True):
    """The outcomes of a stage's cells, and every broken promise."""

    outcomes: tuple[CellOutcome, ...]
    violations: tuple[Violation, ...]


async def run(name: str, chosen: Sequence[CrashCell], folder: Path) -> StageReport:
    """Play the cells on that stage, in `folder`, and check them. Its logs are printed when a cell fails."""
    outcomes = []
    with STAGES[name].engine() as docker:
        async with run_stage(folder, docker, switched=STAGES[name].switched) as chaos:
            try:
                for cell in chosen:
                    outcomes.append(await play_cell(chaos, cell))
                    click.echo(f"{cell.name}: {outcomes[-1].events} ({outcomes[-1].seconds:.1f} s)", err=True)
                return StageReport(tuple(outcomes), tuple(check(await chaos.evidence())))
            except BaseException:
                click.echo(chaos.installation.tail(), err=True)
                raise


def table(outcomes: Sequence[CellOutcome]) -> str:
    """Return the table, step by target: the events after `submitted`, and the seconds from kill to end."""
    of: dict[tuple[str, str], dict[CallSide, CellOutcome]] = defaultdict(dict)
    for outcome in outcomes:
        of[outcome.cell.step, outcome.cell.target][outcome.cell.moment] = outcome
    lines = [f"| step | {' | '.join(KILL_TARGETS)} |", "|---" * (len(KILL_TARGETS) + 1) + "|"]
    for step in STEPS:
        row = [_cell(of.get((step.name, target), {})) for target in KILL_TARGETS]
        lines.append(f"| {step.name} | {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _cell(of: Mapping[CallSide, CellOutcome]) -> str:
    if len({outcome.events for outcome in of.values()}) == 1:
        seconds = " and ".join(f"{of[moment].seconds:.0f}" for moment in CallSide if moment in of)
        return f"{next(iter(of.values())).events} ({seconds} s)"
    rows = (f"{moment}: {of[moment].events} ({of[moment].seconds:.0f} s)" for moment in CallSide if moment in of)
    return "<br>".join(rows) or "–"


def replace_table(page: str, text: str) -> str:
    """Return the page with its table replaced."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}{text}{END}{tail}"


async def play_all(chosen: Sequence[CrashCell], top: Path) -> StageReport:
    """Play each cell on its stage, the stages at the same time, in folders below `top`."""
    reports = []

    async def one(name: str, here: Sequence[CrashCell], folder: Path) -> None:
        await anyio.Path(folder).mkdir()
        reports.append(await run(name, here, folder))

    async with anyio.create_task_group() as tasks:
        for number, (name, stage_) in enumerate(STAGES.items()):
            if here := [cell for cell in chosen if stage_.has(cell)]:
                tasks.start_soon(one, name, here, top / str(number))
    outcomes = tuple(outcome for report in reports for outcome in report.outcomes)
    return StageReport(outcomes, tuple(violation for report in reports for violation in report.violations))


def main() -> int:
    """Print the table, or write it into the page. Exits with 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description="Kill everybody at every step of a job's life.")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--write", action="store_true", help="put the table into docs/promises.md")
    part.add_argument("--only", default="", metavar="WORD", help="only cells whose name has it")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    os.environ.setdefault("DOCKER_BUILDKIT", "0")
    with TemporaryDirectory(prefix="matrix-") as top:
        report = anyio.run(play_all, [cell for cell in cells() if given.only in cell.name], Path(top))
    for violation in report.violations:
        click.echo(f"BROKEN {violation.rule}: {violation.what}", err=True)
    if given.write:
        PAGE.write_text(replace_table(PAGE.read_text(), table(report.outcomes)))
    else:
        click.echo(table(report.outcomes))
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
