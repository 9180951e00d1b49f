"""Earlier releases, out of git's history, run with this one's environment."""

from pathlib import Path

import pytest

from tests.support.releases import check_out

PREVIOUS = "984f97cc4886a23a2f807a51b79afc29e8b1b4a3"
BEFORE_ACCOUNTS = "d231d4eefe7f7a38f3ec962acd788caff2f1e100"  # the last whose broker kept everything in one account


@pytest.fixture(scope="session")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The previous release's tree."""
    return check_out(PREVIOUS, tmp_path_factory.mktemp("previous"))


@pytest.fixture(scope="session")
def before_accounts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of the last release without accounts at the broker."""
    return check_out(BEFORE_ACCOUNTS, tmp_path_factory.mktemp("before"))
