"""How long a connection has stood without a break that an observer could not have noticed (DESIGN 3, "Gone")."""

import time
from collections.abc import Callable
from typing import NamedTuple

JUMP_S = 2.0


class Now(NamedTuple):
    """One moment on three clocks, in seconds: one that stops in a suspend, one that does not, and the calendar's."""

    running: float
    real: float
    wall: float


def read_clocks() -> Now:
    """Linux names the clock that counts a suspend; elsewhere the running one stands for both."""
    suspending = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return Now(time.monotonic(), time.clock_gettime(suspending), time.time())


class Unbroken:
    """Counts anew after `up`, a suspend, or a clock that jumped by more than 2 s between two looks."""

    def __init__(self, clocks: Callable[[], Now] = read_clocks) -> None:
        self._clocks = clocks
        self._since: float | None = None
        self._last = clocks()

    def up(self) -> None:
        """The connection stands from now on."""
        self._last = self._clocks()
        self._since = self._last.running

    def down(self) -> None:
        """The connection is gone."""
        self._since = None

    def seconds(self) -> float:
        """How long so far; 0 while it is down."""
        now, last = self._clocks(), self._last
        self._last = now
        if self._since is None:
            return 0.0
        ran = now.running - last.running
        if abs(now.real - last.real - ran) > JUMP_S or abs(now.wall - last.wall - ran) > JUMP_S:
            self._since = now.running
        return now.running - self._since
