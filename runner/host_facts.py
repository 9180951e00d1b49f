"""Facts that this machine tells the runner: when the host ends, where that is known, and which users are logged in.

A Slurm job and a Pod with a deadline are killed at a known time. A job that starts too late would be stopped, and would
run again elsewhere from its beginning. So a job that would not end before the host does not start here.

Users are found in utmp(5) and in the session files of logind: newer distributions keep only the logind files, others
only utmp. No program is called, because none is installed everywhere. A crash leaves entries of processes that are
gone; such an entry does not count, or a dead session would keep the host powered on.
"""

import platform
import struct
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from msgspec import Struct

SLURM_END_VARIABLE = "SLURM_JOB_END_TIME"  # Unix time; Slurm sets it since 23.02
RUNS_KEPT, RUNS_NEEDED = 20, 3
RUN_MARGIN = 1.25  # factor on the longest recent run
MIN_LIFETIME_LEFT_RATIO = 0.5


class HostEndInvalid(Exception):
    """The time at which this host ends cannot be read; the message says what to do."""


class HostEnd(Struct, frozen=True):
    """The end of this host. `at_s`: on the scale of `clock`. `lifetime_s`: from the start of the runner to the end."""

    at_s: float
    lifetime_s: float
    clock: Callable[[], float]

    @property
    def left_s(self) -> float:
        """The seconds until the end; 0 after it."""
        return max(0.0, self.at_s - self.clock())


def find_end(ends_at: float | None, ends_after_s: float | None, environ: Mapping[str, str]) -> HostEnd | None:
    """Return the earliest end of this host; None if no end is known. Raises HostEndInvalid.

    `ends_at` (Unix time) and `ends_after_s` are the settings of these names.
    """
    from_slurm = environ.get(SLURM_END_VARIABLE)
    try:
        slurm_ends_at = float(from_slurm) if from_slurm else None
    except ValueError as error:
        raise HostEndInvalid(
            f"{SLURM_END_VARIABLE}={from_slurm} is not a Unix time: unset it, and set ends_at instead"
        ) from error
    lifetimes = [max(0.0, at - time.time()) for at in (ends_at, slurm_ends_at) if at is not None]
    if ends_after_s is not None:
        lifetimes.append(ends_after_s)
    if not lifetimes:
        return None
    return HostEnd(time.monotonic() + min(lifetimes), min(lifetimes), time.monotonic)


def has_time(left_s: float, lifetime_s: float, limit_s: float, longest_s: float | None) -> bool:
    """Return whether a job may start that may run for `limit_s`.

    `longest_s`: the longest of its endpoint's last runs here; None: too few are known. A job whose limit is longer than
    the whole life of a host like this one would never start, so it may start, but only in the first half of that life.
    """
    if longest_s is not None and longest_s * RUN_MARGIN <= left_s:
        return True
    if limit_s <= lifetime_s:
        return limit_s <= left_s
    return longest_s is None and left_s >= lifetime_s * MIN_LIFETIME_LEFT_RATIO


class TimeLeft:
    """Decides by the end of the host, and by how long jobs ran here, which jobs may start. `end` None: all may."""

    def __init__(self, end: HostEnd | None) -> None:
        self._end = end
        self._runs: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=RUNS_KEPT))

    def note_run(self, endpoint: str, run_s: float) -> None:
        """Record how long a job of the endpoint ran, from its claim to its end."""
        self._runs[endpoint].append(run_s)

    def why_too_late(self, endpoint: str, limit_s: float) -> str | None:
        """Return why no job of the endpoint with this limit may start now; None if it may."""
        if self._end is None:
            return None
        runs, left_s = self._runs[endpoint], self._end.left_s
        longest_s = max(runs) if len(runs) >= RUNS_NEEDED else None
        if has_time(left_s, self._end.lifetime_s, limit_s, longest_s):
            return None
        usual = "" if longest_s is None else f", and the longest of the last ones ran {longest_s:.0f} s"
        return f"this host ends in {left_s:.0f} s: a job may run {limit_s:.0f} s{usual}"


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
