"""Who is logged in on this machine, by the two files that the system itself keeps: utmp(5), and logind's sessions.

Newer distributions keep only the second, others only the first; no program is asked, because none is everywhere. An
entry whose process is gone is what a crash left behind and counts no more, or a dead session would keep the light on.
"""

import platform
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

Logins = Callable[[], frozenset[str]]
"""The names of the people who are logged in now. Blocking; raises nothing."""

UTMP = Path("/run/utmp")
SESSIONS = Path("/run/systemd/sessions")
PROC = Path("/proc")

USER_PROCESS = 7  # utmp(5): a session of a person
# utmp(5): type, pid, line, id, user; what follows is not read. glibc keeps 64-bit times in it on these machines only.
_ENTRY = struct.Struct("=h2xi32s4s32s")
_WIDE = frozenset({"aarch64", "riscv64", "loongarch64"})
_SIZES = {True: 400, False: 384}


def nobody() -> frozenset[str]:
    """A machine that nobody logs in on."""
    return frozenset()


def logged_in(utmp: Path = UTMP, sessions: Path = SESSIONS, proc: Path = PROC) -> frozenset[str]:
    """Everybody whom either file names; a file that is not there names nobody."""
    entries = [*_in_utmp(utmp), *_in_sessions(sessions)]
    return frozenset(name for name, pid in entries if name and (proc / str(pid)).exists())


def _in_utmp(path: Path) -> Iterable[tuple[str, int]]:
    try:
        data = path.read_bytes()
    except OSError:
        return
    size = _SIZES[platform.machine() in _WIDE]
    for at in range(0, len(data) - size + 1, size):
        kind, pid, _line, _id, user = _ENTRY.unpack_from(data, at)
        if kind == USER_PROCESS:
            yield user.rstrip(b"\0").decode(errors="replace"), pid


def _in_sessions(folder: Path) -> Iterable[tuple[str, int]]:
    for path in sorted(path for path in folder.glob("*") if path.is_file()):  # beside them lie the pipes of logind
        try:
            said = _fields(path.read_text(errors="replace"))
        except OSError:  # the session has just ended
            continue
        if said.get("CLASS") == "user" and said.get("STATE") != "closing" and said.get("LEADER", "").isdecimal():
            yield said.get("USER", ""), int(said["LEADER"])


def _fields(text: str) -> Mapping[str, str]:
    pairs = (line.partition("=") for line in text.splitlines())
    return {name: value for name, equals, value in pairs if equals}
