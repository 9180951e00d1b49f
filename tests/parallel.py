"""Tests in several processes at once: which file starts first, and what becomes of a test that ends its process."""

from collections import defaultdict
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

# Files that start processes take longer than others of as many tests.
HEAVY = {"e2e": 3.0, "powercut": 3.0, "upgrade": 3.0, "broken": 3.0, "chaos": 3.0, "images": 1.0}
LIGHT = 0.1


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the files first that take longest, so that none of them is what the other workers wait for at the end."""
    if not hasattr(config, "workerinput"):
        return
    seconds: defaultdict[Path, float] = defaultdict(float)
    for item in items:
        seconds[item.path] += _seconds(item)
    items.sort(key=lambda item: -seconds[item.path])


def _seconds(item: pytest.Item) -> float:
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
