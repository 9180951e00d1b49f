"""Debian's Prometheus and its promtool: the real ones, which judge our rules and queries."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.requirements import require

TIMEOUT_S = 60


def find_program(name: str) -> str:
    """Return the path of `prometheus` or `promtool`. Without it, skip the test, or fail it if REQUIRE_PROMETHEUS=1."""
    program = shutil.which(name)
    require(None if program else f"there is no {name}: install Debian's prometheus", "REQUIRE_PROMETHEUS")
    return str(program)


def run_promtool(*words: str | Path) -> str:
    """Run promtool and return its output. Fails the test if promtool does."""
    argv = [find_program("promtool"), *map(str, words)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    if done.returncode:
        pytest.fail(f"{' '.join(argv)}: {done.stdout}{done.stderr}", pytrace=False)
    return done.stdout
