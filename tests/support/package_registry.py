"""What a test needs of a package registry: a test that cannot have it is skipped with the reason, or fails in CI."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

WHEEL_CACHE_DIR = Path(__file__).parents[2] / ".cache/wheels"


def run_download(argv: Sequence[str | Path]) -> None:
    """Run a command that downloads; REQUIRE_REGISTRY=1 makes its failure the test's."""
    if why := _run(argv):
        _skip_or_fail(why)


def fetch_wheel(requirement: str) -> Path:
    """Return a downloaded wheel, kept for the day on which no registry answers."""
    kept = WHEEL_CACHE_DIR / requirement
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept) as scratch:
        why = _run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, requirement])
        for new in Path(scratch).glob("*.whl"):
            return new.replace(kept / new.name)
    latest = sorted(kept.glob("*.whl"), key=lambda path: path.stat().st_mtime)
    if not latest:
        _skip_or_fail(why)
    return latest[-1]


def _run(argv: Sequence[str | Path]) -> str:
    """Run it; return why it failed, or nothing."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    what = " ".join(map(str, argv[-2:]))
    return f"{what} failed: {(done.stderr or done.stdout).strip()[-300:]}" if done.returncode else ""


def _skip_or_fail(why: str) -> None:
    if os.environ.get("REQUIRE_REGISTRY") == "1":
        pytest.fail(f"REQUIRE_REGISTRY=1, but {why}", pytrace=False)
    pytest.skip(why)
