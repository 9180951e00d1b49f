"""Logged-in users: by utmp, by logind's sessions, and without those whose process is gone."""

import platform
import struct
from pathlib import Path

import pytest

from runner.host_facts import find_logged_in_users

SESSION = "# private\nUID=1000\nUSER={user}\nACTIVE=1\nSTATE={state}\nREMOTE=1\nTYPE=tty\nCLASS={kind}\nLEADER={pid}\n"


def entry(kind: int, pid: int, user: str, size: int) -> bytes:
    """Return an entry as login(1) writes it: utmp(5)."""
    return struct.pack("=h2xi32s4s32s", kind, pid, b"pts/0", b"ts/0", user.encode()).ljust(size, b"\0")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """Return a /proc in which the processes 10 to 12 run."""
    for pid in (10, 11, 12):
        (tmp_path / "proc" / str(pid)).mkdir(parents=True)
    return tmp_path / "proc"


@pytest.mark.parametrize(("machine", "size"), [("x86_64", 384), ("aarch64", 400)])
def test_utmp_names_the_people_of_living_sessions(
    tmp_path: Path, proc: Path, monkeypatch: pytest.MonkeyPatch, machine: str, size: int
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    utmp = tmp_path / "utmp"
    boot, dead_process, crashed, cut_off = (2, 0, "reboot"), (8, 10, "left"), (7, 99, "crashed"), b"\7\0"
    people = [boot, dead_process, crashed, (7, 10, "ann"), (7, 11, "bob"), (7, 12, "ann")]
    utmp.write_bytes(b"".join(entry(*person, size) for person in people) + cut_off)
    assert find_logged_in_users(utmp, tmp_path / "none", proc) == {"ann", "bob"}


def test_logind_names_the_people_of_living_sessions(tmp_path: Path, proc: Path) -> None:
    sessions = tmp_path / "sessions"
    sessions.mkdir()
    rows = [
        ("ann", "active", "user", 10),
        ("bob", "closing", "user", 11),
        ("gdm", "active", "greeter", 12),
        ("cid", "online", "user", 99),
    ]
    for number, (user, state, kind, pid) in enumerate(rows):
        (sessions / f"{number}").write_text(SESSION.format(user=user, state=state, kind=kind, pid=pid))
    (sessions / "odd").write_text("USER=eve\nCLASS=user\n")
    (sessions / "1.ref").mkdir()
    assert find_logged_in_users(tmp_path / "none", sessions, proc) == {"ann"}


def test_a_machine_with_neither_file_has_nobody(tmp_path: Path) -> None:
    assert find_logged_in_users(tmp_path / "none", tmp_path / "neither") == frozenset()
