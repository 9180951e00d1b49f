"""Detect a job that will not succeed: a blocked queue, a dead process, no progress, a missed deadline.

Users have reported each of these as a job that hangs and blocks every later job. The times are arguments.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from heygem_worker import failures
from jobkit import JobError, TryAgain


class WatchdogLimits(NamedTuple):
    """Limits in seconds: `stall_s` without progress, `deadline_s` in total."""

    stall_s: float
    deadline_s: float


class Watchdog:
    """Watches one job and raises its failure as soon as it is certain."""

    def __init__(self, limits: WatchdogLimits, now: float) -> None:
        self._limits = limits
        self._began = self._last_activity_at = now
        self._activity: Hashable = None
        self._clue = failures.DeathClue()

    def feed(self, line: str) -> None:
        """Check a line of the vendor's log. Raises the failure if the line means that no result will come."""
        self._clue.feed(line)
        failure = failures.find_fatal_failure(line)
        if failure is not None:
            raise failure

    def check(self, sign: Hashable, dead: str, now: float) -> None:
        """Raise if a process died or a limit passed. `sign` changes with progress; `dead` names the dead process."""
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
