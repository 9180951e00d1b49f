"""Looking for bytes where nothing should be left of them: in every file of a folder, and in the names of those."""

from collections.abc import Iterable
from pathlib import Path


def find_marks(folder: Path, marks: Iterable[str]) -> dict[str, int]:
    """How often each of `marks` stands in which file, as `file: mark`."""
    there: dict[str, int] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        for mark in marks:
            count = data.count(mark.encode()) + str(path.relative_to(folder)).count(mark)
            if count:
                there[f"{path.relative_to(folder)}: {mark}"] = count
    return there
