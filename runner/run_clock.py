"""Time as it passes, which no calendar moves: it is judged by for how long a container ran.

A host's calendar is set forward or back while jobs run. Sleeps do not mind; a difference of two dates does: it would
time a job out that has just begun, and bill an hour that nobody worked.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from msgspec import Struct

from runner.engines.port import ContainerExit
from runner.engines.process_shim import boot_id

CLOCK_JUMP_S = 2.0  # by so much two clocks of one machine differ when one was set


class Uptime(Struct, frozen=True):
    """A moment of one boot of the machine ("": it does not name its boots), in seconds of its running clock."""

    boot: str
    s: float

    def since(self, earlier: "Uptime | None") -> float | None:
        """Seconds that passed; None where nobody can tell: not noted then, or the machine was booted anew."""
        if earlier is None or not self.boot or earlier.boot != self.boot:
            return None
        return max(0.0, self.s - earlier.s)


def boot_clock() -> Callable[[], Uptime]:
    """The clock. A suspended machine's stands still, and so does the job."""
    name = ""
    with suppress(OSError):  # not Linux
        name = boot_id()
    return lambda: Uptime(name, time.monotonic())


class StartTime(Struct, frozen=True):
    """When a container began its job: by the calendar, and by the clock that passes."""

    at: datetime
    uptime: Uptime | None = None


def elapsed_s(begun: StartTime, now: StartTime) -> float:
    """Seconds from `begun` to `now`; by the calendar where nobody can tell them otherwise."""
    passed = now.uptime.since(begun.uptime) if now.uptime else None
    return max(0.0, (now.at - begun.at).total_seconds()) if passed is None else passed


def run_s(ended: ContainerExit, begun: StartTime | None, now: StartTime, *, ahead: bool) -> float | None:
    """Seconds that a container ran, None where its engine tells no times. `now`: when its end was seen.

    By the engine's dates, which are exact, also where the end came unseen; they are not believed when the calendar was
    set meanwhile, or when they tell more than has passed. `ahead`: it waited for its job, and began with that.
    """
    if ended.started_at is None or ended.finished_at is None:
        return None
    told = (ended.finished_at - (begun.at if ahead and begun else ended.started_at)).total_seconds()
    passed = now.uptime.since(begun.uptime) if begun and now.uptime else None
    if begun is None or passed is None:
        return max(0.0, told)
    was_set = abs((now.at - begun.at).total_seconds() - passed) > CLOCK_JUMP_S
    return passed if was_set or not 0 <= told <= passed + CLOCK_JUMP_S else told
