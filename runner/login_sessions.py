"""The users who are logged in on this machine, from utmp(5) and from the session files of logind.

Newer distributions keep only the logind files, others only utmp. No program is called, because none is installed
everywhere. A crash leaves entries of processes that are gone; such an entry does not count, or a dead session would
keep the host powered on.
"""

import platform
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

LoginLookup = Callable[[], frozenset[str]]
"""Returns the names of the users who are logged in now. Blocking; raises nothing."""

UTMP = Path("/run/utmp")
SESSIONS_DIR = Path("/run/systemd/sessions")
PROC_DIR = Path("/proc")

USER_PROCESS = 7  # utmp(5): a session of a person
# utmp(5): type, pid, line, id, user; the rest is not read. glibc stores 64-bit times on these machines only.
_ENTRY = struct.Struct("=h2xi32s4s32s")
_MACHINES_WITH_64_BIT_TIME = frozenset({"aarch64", "riscv64", "loongarch64"})
_SIZES = {True: 400, False: 384}


def no_logged_in_users() -> frozenset[str]:
    """Return an empty set: the lookup for a machine without logins."""
    return frozenset()


def find_logged_in_users(utmp: Path = UTMP, sessions: Path = SESSIONS_DIR, proc: Path = PROC_DIR) -> frozenset[str]:
    """Return every user whom one of the two sources names; a missing file names no user."""
    entries = [*_read_utmp(utmp), *_read_sessions(sessions)]
    return frozenset(name for name, pid in entries if name and (proc / str(pid)).exists())


def _read_utmp(path: Path) -> Iterable[tuple[str, int]]:
    try:
        data = path.read_bytes()
    except OSError:
        return
    size = _SIZES[platform.machine() in _MACHINES_WITH_64_BIT_TIME]
    for offset in range(0, len(data) - size + 1, size):
        record_type, pid, _line, _id, user = _ENTRY.unpack_from(data, offset)
        if record_type == USER_PROCESS:
            yield user.rstrip(b"\0").decode(errors="replace"), pid


def _read_sessions(folder: Path) -> Iterable[tuple[str, int]]:
    for path in sorted(path for path in folder.glob("*") if path.is_file()):  # the folder also holds pipes of logind
        try:
            fields = _parse_fields(path.read_text(errors="replace"))
        except OSError:  # the session has just ended
            continue
        if fields.get("CLASS") == "user" and fields.get("STATE") != "closing" and fields.get("LEADER", "").isdecimal():
            yield fields.get("USER", ""), int(fields["LEADER"])


def _parse_fields(text: str) -> Mapping[str, str]:
    pairs = (line.partition("=") for line in text.splitlines())
    return {name: value for name, equals, value in pairs if equals}
