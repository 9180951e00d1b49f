"""Run time of a container, measured on a monotonic clock.

The calendar of a host may be set forward or back while jobs run. Sleeps are not affected, but a difference of two dates
is: it would time out a job that has just begun, or bill an hour that was not used.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from msgspec import Struct

from bus.uptime_clock import CLOCK_JUMP_LIMIT_S
from runner.engines.port import ContainerExit
from runner.engines.process_shim import boot_id


class Uptime(Struct, frozen=True):
    """A moment within one boot of the machine, in seconds of its monotonic clock.

    `boot` is "" where the machine does not identify its boots.
    """

    boot: str
    s: float

    def since(self, earlier: "Uptime | None") -> float | None:
        """Return the seconds since `earlier`, or None where they are unknown.

        They are unknown if `earlier` was not recorded, or if the machine was booted since.
        """
        if earlier is None or not self.boot or earlier.boot != self.boot:
            return None
        return max(0.0, self.s - earlier.s)


def boot_clock() -> Callable[[], Uptime]:
    """Return the clock. It stops while the machine is suspended, as the jobs do."""
    name = ""
    with suppress(OSError):  # not Linux
        name = boot_id()
    return lambda: Uptime(name, time.monotonic())


class StartTime(Struct, frozen=True):
    """The moment at which a container began its job, on the calendar and on the monotonic clock."""

    at: datetime
    uptime: Uptime | None = None


def elapsed_s(start: StartTime, now: StartTime) -> float:
    """Return the seconds from `start` to `now`; by the calendar where the monotonic clock does not know them."""
    passed = now.uptime.since(start.uptime) if now.uptime else None
    return max(0.0, (now.at - start.at).total_seconds()) if passed is None else passed


def run_s(exit_: ContainerExit, start: StartTime | None, now: StartTime, *, warm: bool) -> float | None:
    """Return the seconds that a container ran; None where its engine reports no times. `now` is when the exit was seen.

    The engine's dates are exact, even if the exit was not seen, so they are preferred. They are ignored if the calendar
    was set in the meantime, or if they exceed the time that has passed. `warm`: the container was started before its
    job, and its run begins with the job.
    """
    if exit_.started_at is None or exit_.finished_at is None:
        return None
    reported = (exit_.finished_at - (start.at if warm and start else exit_.started_at)).total_seconds()
    passed = now.uptime.since(start.uptime) if start and now.uptime else None
    if start is None or passed is None:
        return max(0.0, reported)
    clock_was_set = abs((now.at - start.at).total_seconds() - passed) > CLOCK_JUMP_LIMIT_S
    return passed if clock_was_set or not 0 <= reported <= passed + CLOCK_JUMP_LIMIT_S else reported
