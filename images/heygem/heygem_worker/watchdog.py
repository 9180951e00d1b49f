"""Detects a job that will never end: a blocked queue, a dead process, no progress, too late. Pure; times are arguments.

Users have reported each of these as a job that hangs, with every later job behind it.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from heygem_worker import failures
from jobkit import JobError, TryAgain


class WatchdogLimits(NamedTuple):
    """The limits in seconds: without a sign of progress, and in total."""

    stall_s: float
    deadline_s: float


class Watchdog:
    """Raises the failure as soon as it is certain."""

    def __init__(self, limits: WatchdogLimits, now: float) -> None:
        self._limits = limits
        self._began = self._last_activity_at = now
        self._activity: Hashable = None
        self._clue = failures.DeathClue()

    def feed(self, line: str) -> None:
        """Read a line of the vendor's log. Raises the failure if no result will come."""
        self._clue.feed(line)
        failure = failures.find_fatal_failure(line)
        if failure is not None:
            raise failure

    def check(self, sign: Hashable, dead: str, now: float) -> None:
        """Check the limits. `sign` differs when something was done; `dead` names a process that has died."""
        if sign != self._activity:
            self._activity, self._last_activity_at = sign, now
        if dead:
            raise TryAgain("internal", f"HeyGem: {dead} while it was needed{self._clue}: see the job's log")
        if now - self._last_activity_at > self._limits.stall_s:
            raise TryAgain("stalled", f"HeyGem did nothing for {self._limits.stall_s:.0f} s: {failures.AGAIN}")
        if now - self._began > self._limits.deadline_s:
            raise JobError(
                "execution_timeout",
                f"HeyGem was not done after {self._limits.deadline_s:.0f} s: send less audio, or raise HEYGEM_BASE_S",
            )
