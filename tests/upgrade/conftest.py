"""Earlier releases, out of git's history, run with this one's environment."""

import subprocess
from pathlib import Path

import pytest

from tests.support.installation import ROOT

PREVIOUS = "984f97cc4886a23a2f807a51b79afc29e8b1b4a3"
BEFORE_ACCOUNTS = "d231d4eefe7f7a38f3ec962acd788caff2f1e100"  # the last whose broker kept everything in one account


@pytest.fixture(scope="session")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The previous release's tree."""
    return _checkout(PREVIOUS, tmp_path_factory.mktemp("previous"))


@pytest.fixture(scope="session")
def before_accounts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of the last release without accounts at the broker."""
    return _checkout(BEFORE_ACCOUNTS, tmp_path_factory.mktemp("before"))


def _checkout(commit: str, tree: Path) -> Path:
    """Skips where git has not the whole history: in a shallow clone, or outside a repository."""
    archived = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=False)
    if archived.returncode:
        why = f"the release {commit[:7]} is not in git's history: {archived.stderr.decode().strip()}"
        if _git("rev-parse", "--is-shallow-repository") == "false":
            pytest.fail(why, pytrace=False)
        pytest.skip(why)
    subprocess.run(["tar", "-x", "-C", tree], input=archived.stdout, check=True)
    return tree


def _git(*asked: str) -> str:
    return subprocess.run(["git", *asked], cwd=ROOT, capture_output=True, check=False, text=True).stdout.strip()
