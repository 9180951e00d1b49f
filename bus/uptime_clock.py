"""The uptime of a connection, without breaks that an observer could not have noticed, such as a suspend.

A host counts as gone only for an observer that was connected for long enough without such a break.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

CLOCK_JUMP_LIMIT_S = 2.0


class ClockReading(NamedTuple):
    """One moment on three clocks, in seconds: one that stops in a suspend, one that does not, and wall time."""

    monotonic_s: float
    boottime_s: float
    wall_s: float


def read_clocks() -> ClockReading:
    """Read the clocks. Only Linux has a clock that counts a suspend; elsewhere the monotonic one stands for both."""
    suspending = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return ClockReading(time.monotonic(), time.clock_gettime(suspending), time.time())


class UptimeClock:
    """Count seconds.

    Start again after `start`, a suspend, or a clock that jumped by more than 2 s between two calls.
    """

    def __init__(self, clocks: Callable[[], ClockReading] = read_clocks) -> None:
        self._clocks = clocks
        self._since: float | None = None
        self._last = clocks()

    def start(self) -> None:
        """Count from now on: the connection is up."""
        self._last = self._clocks()
        self._since = self._last.monotonic_s

    def stop(self) -> None:
        """Stop counting: the connection is down."""
        self._since = None

    def uptime_s(self) -> float:
        """Return the seconds so far; 0 while the connection is down."""
        now, last = self._clocks(), self._last
        self._last = now
        if self._since is None:
            return 0.0
        ran = now.monotonic_s - last.monotonic_s
        if (
            abs(now.boottime_s - last.boottime_s - ran) > CLOCK_JUMP_LIMIT_S
            or abs(now.wall_s - last.wall_s - ran) > CLOCK_JUMP_LIMIT_S
        ):
            self._since = now.monotonic_s
        return now.monotonic_s - self._since
