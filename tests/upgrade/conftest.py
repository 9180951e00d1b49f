"""The previous release, out of git's history, run with this one's environment."""

import subprocess
from pathlib import Path

import pytest

from tests.e2e.installation import ROOT

PREVIOUS = "984f97cc4886a23a2f807a51b79afc29e8b1b4a3"


@pytest.fixture(scope="session")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its tree. Skips where git has not the whole history: in a shallow clone, or outside a repository."""
    tree = tmp_path_factory.mktemp("previous")
    archived = subprocess.run(["git", "archive", PREVIOUS], cwd=ROOT, capture_output=True, check=False)
    if archived.returncode:
        why = f"the previous release {PREVIOUS[:7]} is not in git's history: {archived.stderr.decode().strip()}"
        if _git("rev-parse", "--is-shallow-repository") == "false":
            pytest.fail(why, pytrace=False)
        pytest.skip(why)
    subprocess.run(["tar", "-x", "-C", tree], input=archived.stdout, check=True)
    return tree


def _git(*asked: str) -> str:
    return subprocess.run(["git", *asked], cwd=ROOT, capture_output=True, check=False, text=True).stdout.strip()
