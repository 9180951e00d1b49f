"""`python -m deploy.commit_subjects`: check the subjects of the commits since this check was added.

A subject is `area: imperative summary`, at most 72 characters, without a full stop. Merge commits are not checked. In a
shallow clone the oldest commit counts as the one that added the check, so only the commits after it are read.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUBJECT_LIMIT = 72
SUBJECT_PATTERN = re.compile(r"[a-z0-9_./-]+(, [a-z0-9_./-]+)*: \S.*")


def find_fault(subject: str) -> str | None:
    """Return what is wrong with a subject, or None."""
    if not SUBJECT_PATTERN.fullmatch(subject):
        return "it is not `area: summary`"
    if len(subject) > SUBJECT_LIMIT:
        return f"it has {len(subject)} characters, the limit is {SUBJECT_LIMIT}"
    return "it ends with a full stop" if subject.endswith(".") else None


def new_subjects(root: Path, check: str) -> list[tuple[str, str]]:
    """Return id and subject of the commits after the newest one that added the file `check`."""
    added = _git(root, "log", "-1", "--diff-filter=A", "--format=%H", "--", check).strip()
    if not added:  # the file is not committed yet
        return []
    rows = _git(root, "log", "--no-merges", "--format=%h %s", f"{added}..HEAD").splitlines()
    return [(row.partition(" ")[0], row.partition(" ")[2]) for row in rows]


def _git(root: Path, *args: str) -> str:
    return subprocess.run(["git", *args], cwd=root, check=True, capture_output=True, text=True).stdout


def main(root: Path = ROOT, check: str = "deploy/commit_subjects.py") -> int:
    """Print each wrong subject and return the exit code."""
    if not (root / ".git").exists():
        print("commit subjects: not checked, this is not a git checkout")
        return 0
    subjects = new_subjects(root, check)
    faults = [(commit, subject, fault) for commit, subject in subjects if (fault := find_fault(subject))]
    for commit, subject, fault in faults:
        print(f"{commit} {subject!r}: {fault}; reword it with `git rebase --interactive`", file=sys.stderr)
    print(f"commit subjects: {len(subjects)} checked, {len(faults)} wrong")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
