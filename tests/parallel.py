"""Tests in several processes at once: which file starts first, and what becomes of a test that ends its process.

`file_seconds.json` says how long each file takes that takes long. `WRITE_FILE_SECONDS=1 ./justw test all` writes it.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

FILE_SECONDS = Path(__file__).with_name("file_seconds.json")
WRITTEN_FROM_S = 5.0
# Of files that are not in that table, those that start processes take longer than others of as many tests.
HEAVY = {"e2e": 3.0, "powercut": 3.0, "upgrade": 3.0, "broken": 3.0, "chaos": 3.0, "images": 1.0}
LIGHT = 0.1


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the files first that take longest, so that none of them is what the other workers wait for at the end."""
    if not hasattr(config, "workerinput"):
        return
    estimated: defaultdict[str, float] = defaultdict(float)
    for item in items:
        estimated[_file(item.nodeid)] += _estimate_seconds(item)
    estimated.update(json.loads(FILE_SECONDS.read_text()))
    items.sort(key=lambda item: -estimated[_file(item.nodeid)])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write the table where the environment asks for it."""
    if os.environ.get("WRITE_FILE_SECONDS") == "1":
        reports = [report for reports in terminalreporter.stats.values() for report in reports]
        FILE_SECONDS.write_text(json.dumps(sum_file_seconds(reports), indent=1) + "\n")


def sum_file_seconds(reports: Iterable[object]) -> dict[str, int]:
    """Return the seconds of each file that takes long, the longest first."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for report in reports:
        if isinstance(report, pytest.TestReport):
            seconds[_file(report.nodeid)] += report.duration
    longest_first = sorted(seconds.items(), key=lambda row: (-row[1], row[0]))
    return {file: round(taken) for file, taken in longest_first if taken >= WRITTEN_FROM_S}


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def _estimate_seconds(item: pytest.Item) -> float:
    mark = item.get_closest_marker("long")
    if mark is not None:
        return mark.args[0]
    return next((seconds for folder, seconds in HEAVY.items() if folder in item.path.parts), LIGHT)


class _Files(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """One file stays on one worker; files start in the order in which they were collected."""

    def remove_node(self, node: WorkerController) -> str | None:
        """xdist's own gives the test that ended a worker to the next worker, which it ends too, until none is left."""
        for tests in self.assigned_work[node].values():
            for crashed in (name for name, done in tests.items() if not done):
                tests[crashed] = True
                super().remove_node(node)
                return crashed
        return super().remove_node(node)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> _Files | None:
    if config.getoption("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False
    return _Files(config, log)
