"""The second run: what fails again stops CI, what passes alone is listed, and many failures are not run again."""

import json
from pathlib import Path

import pytest

from deploy.second_run import LAST_FAILED, LIMIT, main

TESTS = """
from pathlib import Path

def test_passes_alone():
    pass

def test_fails():
    assert not "always"
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "test_it.py").write_text(TESTS)
    return tmp_path


def note_failed(tree: Path, *tests: str) -> None:
    (tree / LAST_FAILED).parent.mkdir(parents=True)
    (tree / LAST_FAILED).write_text(json.dumps({f"test_it.py::{test}": True for test in tests}))


def test_what_passes_alone_is_listed(tree: Path, capfd: pytest.CaptureFixture[str]) -> None:
    note_failed(tree, "test_passes_alone")
    assert main(tree) == 0
    shown = capfd.readouterr().out
    assert "1 passed" in shown
    assert "unstable" in shown
    assert shown.rstrip().endswith("  test_it.py::test_passes_alone")


def test_what_fails_again_stops_ci(tree: Path, capfd: pytest.CaptureFixture[str]) -> None:
    note_failed(tree, "test_passes_alone", "test_fails")
    assert main(tree) == 1
    shown = capfd.readouterr().out
    assert "1 failed, 1 passed" in shown
    assert "unstable" not in shown


def test_many_failures_are_not_run_again(tree: Path, capfd: pytest.CaptureFixture[str]) -> None:
    note_failed(tree, *(f"test_{number}" for number in range(LIMIT + 1)))
    assert main(tree) == 1
    assert f"{LIMIT + 1} tests failed, more than {LIMIT}" in capfd.readouterr().out


def test_without_a_failed_test_it_was_something_else(tree: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(tree) == 1
    assert "no test failed" in capfd.readouterr().out
