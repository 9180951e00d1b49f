"""Notes between runs: whole whoever writes at once, and never more than so many."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lamplighter.files import JsonCache


def test_threads_that_note_at_once_do_not_meet(tmp_path: Path):
    notes = JsonCache(tmp_path / "notes.json")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: notes.put(f"n{number}", "x" * 1000), range(200)))
    assert sum(notes.get(f"n{number}") is not None for number in range(200)) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["notes.json"]


def test_the_oldest_go_first(tmp_path: Path):
    notes = JsonCache(tmp_path / "notes.json", limit=3)
    for name in "abcde":
        notes.put(name, name.upper())
    assert [notes.get(name) for name in "abcde"] == [None, None, "C", "D", "E"]


def test_a_file_that_is_not_regular_is_not_replaced(tmp_path: Path):
    """As root, `cache=os.devnull` would replace /dev/null of the whole machine."""
    device = tmp_path / "null"
    device.symlink_to(os.devnull)
    JsonCache(device).put("a", "b")
    assert device.is_symlink()
    assert list(tmp_path.iterdir()) == [device]
