"""Files that are whole or not there."""

import os
import stat
from pathlib import Path

import pytest

from bus.secret_files import atomic_write


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_is_for_its_owner_alone_unless_another_mode_is_asked_for(tmp_path: Path):
    secret, public = tmp_path / "secret", tmp_path / "public"
    umask = os.umask(0o077)
    try:
        atomic_write(secret, "text")
        atomic_write(public, b"bytes", mode=0o644)
    finally:
        os.umask(umask)
    assert (secret.read_text(), mode_of(secret)) == ("text", 0o600)
    assert (public.read_bytes(), mode_of(public)) == (b"bytes", 0o644)


def test_a_file_is_replaced_with_what_a_crash_left_beside_it(tmp_path: Path):
    path, left = tmp_path / "file", tmp_path / "file.part"
    path.write_text("old")
    path.chmod(0o644)
    left.write_text("half of")
    left.chmod(0o666)
    atomic_write(path, "new")
    assert (path.read_text(), mode_of(path)) == ("new", 0o600)
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_never_finds_a_part_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, seen = tmp_path / "file", list[str]()
    path.write_text("old")
    fsync = os.fsync

    def look_first(handle: int) -> None:
        seen.append(path.read_text())
        fsync(handle)

    monkeypatch.setattr(os, "fsync", look_first)
    atomic_write(path, "new")
    assert seen == ["old", "new"], "before the rename, and when the folder is synced"
