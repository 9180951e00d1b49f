"""A part of the crash matrix, selected by a seed, for CI; `just chaos-matrix` plays all of it."""

from pathlib import Path
from random import Random

import pytest

from tests.chaos.crash_steps import STEPS, CrashCell, cells
from tests.chaos.kill_targets import KILL_TARGETS
from tests.chaos.matrix import PAGE, STAGES, play_all, replace_table, table
from tests.support.installation import ROOT

CHOSEN = {"processes": 9, "docker": 3, "docker, no live-restore": 3, "switch": 1}

pytestmark = pytest.mark.timeout(400)


def chosen(seed: int, *stages: str) -> list[CrashCell]:
    """Return as many cells of these stages as CI has time for."""
    return [
        cell
        for stage in stages
        for cell in Random(f"{seed} {stage}").sample([c for c in cells() if STAGES[stage].has(c)], CHOSEN[stage])
    ]


async def assert_kept(given: list[CrashCell], folder: Path, seed: int) -> None:
    """Assert every promise after these kills; the failure says how to reproduce it."""
    report = await play_all(given, folder)
    assert report.violations == (), f"CHAOS_SEED={seed} shows it again: {report.violations}"
    assert {outcome.cell for outcome in report.outcomes} == set(given)


@pytest.mark.long(84)
async def test_no_promise_is_broken_by_a_kill_at_any_step(tmp_path: Path, seed: int):
    await assert_kept(chosen(seed, "processes", "switch"), tmp_path, seed)


@pytest.mark.long(90)
@pytest.mark.docker
@pytest.mark.usefixtures("own_engines")
async def test_no_promise_is_broken_by_a_kill_of_a_container_or_its_engine(tmp_path: Path, seed: int):
    await assert_kept(chosen(seed, "docker", "docker, no live-restore"), tmp_path, seed)


def test_every_cell_is_played_on_one_stage():
    for cell in cells():
        assert sum(stage.has(cell) for stage in STAGES.values()) == 1, cell


def test_the_page_shows_every_cell_of_the_matrix():
    lines = PAGE.read_text().splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("| step |"))
    assert lines[head].strip("| ").split(" | ") == ["step", *KILL_TARGETS]
    rows = {
        row[0]: row[1:] for line in lines[head + 2 : head + 2 + len(STEPS)] if (row := line.strip("| ").split(" | "))
    }
    for step in STEPS:
        shown = {target for target, text in zip(KILL_TARGETS, rows[step.name], strict=True) if text != "–"}
        assert shown == set(step.targets), step.name


def test_a_table_is_put_in_the_place_of_the_one_before():
    page = (ROOT / "docs" / "promises.md").read_text()
    once = replace_table(page, table([]))
    assert replace_table(once, table([])) == once
    assert once.count("| step |") == 1
    assert once.startswith(page[:200])
