"""Trees of earlier releases, out of git's history."""

import re
import subprocess
from pathlib import Path

import pytest

from schemas.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
FIRST = "52c019817f64be2e9a3d24ce6a08f85902da52e3"


def check_out(commit: str, tree: Path) -> Path:
    """Write the commit's files into `tree`. Skips where git has not the whole history: in a shallow clone, or outside.

    Fails where the history is there and the commit is not.
    """
    archived = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=False)
    if archived.returncode:
        why = f"the release {commit[:7]} is not in git's history: {archived.stderr.decode().strip()}"
        if _git("rev-parse", "--is-shallow-repository") == "false":
            pytest.fail(why, pytrace=False)
        pytest.skip(why)
    subprocess.run(["tar", "-x", "-C", tree], input=archived.stdout, check=True)
    return tree


def newest_release() -> str:
    """Return the newest tag of another version than this one, as v0.2.0; without any, the commit of 0.1.0."""
    tags = _git("tag", "--merged", "HEAD", "--sort=-version:refname").split()
    return next((tag for tag in tags if re.fullmatch(r"v\d+\.\d+\.\d+", tag) and tag != f"v{VERSION}"), FIRST)


def _git(*asked: str) -> str:
    return subprocess.run(["git", *asked], cwd=ROOT, capture_output=True, check=False, text=True).stdout.strip()
