"""Tests in several processes at once: what is done before the workers start, and which file goes to which of them."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from xdist import is_xdist_controller
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

ROOT = Path(__file__).resolve().parents[1]
BYTECODE = str(ROOT / ".cache" / "bytecode")  # as in tests/e2e/installation.py
COMMANDS = "import lamplighter.cli.edge, lamplighter.cli.runner, lamplighter.cli.up"
# Files that start processes take longer than others of as many tests.
HEAVY = {"e2e": 3.0, "powercut": 3.0, "upgrade": 3.0, "broken": 3.0, "chaos": 3.0, "images": 1.0}
LIGHT = 0.1


def keep_bytecode() -> None:
    """Where PYTHONDONTWRITEBYTECODE is set, keep compiled modules in a folder of their own.

    Without any, each worker compiles all tests, and each process that a test starts compiles all that it imports: 3 s.
    """
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
        sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = BYTECODE
        sys.dont_write_bytecode = False


keep_bytecode()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Compile once what the tests of several workers are about to start at the same time."""
    if is_xdist_controller(session) and session.config.getoption("dist") != "no":
        subprocess.run([sys.executable, "-X", f"pycache_prefix={BYTECODE}", "-c", COMMANDS], cwd=ROOT, check=True)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the files first that take longest, so that none of them is what the other workers wait for at the end."""
    if not hasattr(config, "workerinput"):
        return
    seconds: Counter[Path] = Counter()
    for item in items:
        seconds[item.path] += _seconds(item)
    items.sort(key=lambda item: -seconds[item.path])


def _seconds(item: pytest.Item) -> float:
    mark = item.get_closest_marker("long")
    if mark is not None:
        return mark.args[0]
    return HEAVY.get(item.path.relative_to(ROOT / "tests").parts[0], LIGHT)


class _Files(LoadFileScheduling):
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
