"""Who is logged in on this machine, by the two files that the system itself keeps: utmp(5), and logind's sessions.

Newer distributions keep only the second, others only the first; no program is asked, because none is everywhere. An
entry whose process is gone is what a crash left behind and counts no more, or a dead session would keep the light on.
"""

import platform
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

LoginLookup = Callable[[], frozenset[str]]
"""The names of the people who are logged in now. Blocking; raises nothing."""

UTMP = Path("/run/utmp")
SESSIONS_DIR = Path("/run/systemd/sessions")
PROC_DIR = Path("/proc")

USER_PROCESS = 7  # utmp(5): a session of a person
# utmp(5): type, pid, line, id, user; what follows is not read. glibc keeps 64-bit times in it on these machines only.
_ENTRY = struct.Struct("=h2xi32s4s32s")
_MACHINES_WITH_64_BIT_TIME = frozenset({"aarch64", "riscv64", "loongarch64"})
_SIZES = {True: 400, False: 384}


def no_logged_in_users() -> frozenset[str]:
    """A machine that nobody logs in on."""
    return frozenset()


def find_logged_in_users(utmp: Path = UTMP, sessions: Path = SESSIONS_DIR, proc: Path = PROC_DIR) -> frozenset[str]:
    """Everybody whom either file names; a file that is not there names nobody."""
    entries = [*_read_utmp(utmp), *_read_sessions(sessions)]
    return frozenset(name for name, pid in entries if name and (proc / str(pid)).exists())


def _read_utmp(path: Path) -> Iterable[tuple[str, int]]:
    try:
        data = path.read_bytes()
    except OSError:
        return
    size = _SIZES[platform.machine() in _MACHINES_WITH_64_BIT_TIME]
    for at in range(0, len(data) - size + 1, size):
        kind, pid, _line, _id, user = _ENTRY.unpack_from(data, at)
        if kind == USER_PROCESS:
            yield user.rstrip(b"\0").decode(errors="replace"), pid


def _read_sessions(folder: Path) -> Iterable[tuple[str, int]]:
    for path in sorted(path for path in folder.glob("*") if path.is_file()):  # beside them lie the pipes of logind
        try:
            said = _parse_fields(path.read_text(errors="replace"))
        except OSError:  # the session has just ended
            continue
        if said.get("CLASS") == "user" and said.get("STATE") != "closing" and said.get("LEADER", "").isdecimal():
            yield said.get("USER", ""), int(said["LEADER"])


def _parse_fields(text: str) -> Mapping[str, str]:
    pairs = (line.partition("=") for line in text.splitlines())
    return {name: value for name, equals, value in pairs if equals}
