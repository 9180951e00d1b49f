"""What a test needs of a package registry: a test that cannot have it is skipped with the reason, or fails in CI."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest


def fetch(argv: Sequence[str | Path]) -> None:
    """Run a command that downloads; REQUIRE_REGISTRY=1 makes its failure the test's."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        missing(f"{' '.join(map(str, argv[-2:]))} failed: {(done.stderr or done.stdout).strip()[-300:]}")


def missing(why: str) -> None:
    if os.environ.get("REQUIRE_REGISTRY") == "1":
        pytest.fail(f"REQUIRE_REGISTRY=1, but {why}", pytrace=False)
    pytest.skip(why)
