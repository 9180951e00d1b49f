"""Which commits the check of subjects reads, and what it accepts."""

import subprocess
from pathlib import Path

import pytest

from deploy.commit_subjects import find_fault, main

CHECK = "check.py"


def git(folder: Path, *args: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *args], cwd=folder, check=True, capture_output=True)


def commit(folder: Path, subject: str, file: str = "notes") -> None:
    with (folder / file).open("a") as text:
        text.write(f"{subject}\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-m", subject)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with a wrong subject before the commit that adds the check."""
    folder = tmp_path / "origin"
    folder.mkdir()
    git(folder, "init", "-b", "main")
    commit(folder, "One with no area")
    commit(folder, "ci: check subjects", CHECK)
    return folder


@pytest.mark.parametrize(
    ("subject", "fault"),
    [
        ("edge: refuse a body over the limit", None),
        ("schemas, bus: rename what users read", None),
        (".ci/run: install iproute2", None),
        (f"edge: {'x' * 66}", None),
        (f"edge: {'x' * 67}", "73 characters"),
        ("Indent", "area"),
        ("Edge: refuse", "area"),
        ("edge:refuse", "area"),
        ("edge: ", "area"),
        ("edge: refuse a body.", "full stop"),
    ],
)
def test_a_subject(subject: str, fault: str | None) -> None:
    found = find_fault(subject)
    assert (found is None) == (fault is None)
    assert fault is None or fault in str(found)


def test_only_commits_after_the_check_are_read(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(repository, CHECK) == 0
    commit(repository, "edge: a good one")
    commit(repository, "A wrong one")
    assert main(repository, CHECK) == 1
    printed = capsys.readouterr()
    assert "'A wrong one'" in printed.err
    assert "2 checked, 1 wrong" in printed.out


def test_a_merge_commit_is_not_read(repository: Path) -> None:
    git(repository, "checkout", "-b", "side")
    commit(repository, "edge: on the side", "side")
    git(repository, "checkout", "main")
    git(repository, "merge", "--no-ff", "-m", "Merge branch 'side'", "side")
    assert main(repository, CHECK) == 0


@pytest.mark.parametrize(("depth", "code"), [(1, 0), (2, 1)])
def test_a_shallow_clone_reads_the_commits_after_its_oldest(
    repository: Path, tmp_path: Path, depth: int, code: int
) -> None:
    commit(repository, "edge: a good one")
    commit(repository, "A wrong one")
    git(tmp_path, "clone", f"--depth={depth}", f"file://{repository}", "clone")
    assert main(tmp_path / "clone", CHECK) == code


def test_a_tree_without_git_is_not_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(tmp_path, CHECK) == 0
    assert "not a git checkout" in capsys.readouterr().out


def test_a_check_that_is_not_committed_reads_nothing(repository: Path) -> None:
    assert main(repository, "another.py") == 0
