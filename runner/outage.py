"""Errors that pass, the gate that stops claiming during an outage, and a backoff."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio
import anyio.to_thread

from bus.interface import BrokerDenied, BrokerFull, BrokerUnreachable
from runner.assets.port import EdgeUnavailable, NotHeld
from runner.engines.port import EngineUnavailable
from schemas.events import RecordUnreadable


class FailureBackoff:
    """Exponential backoff between tries. Times are monotonic seconds; `reason` is the last failure, or ""."""

    def __init__(self) -> None:
        self.reason = ""
        self._failures = 0
        self._retry_at = 0.0

    def is_waiting(self, now: float) -> bool:
        """Return whether it is too early for the next try."""
        return self.left_s(now) > 0

    def left_s(self, now: float) -> float:
        """Return the seconds until the next try."""
        return max(0.0, self._retry_at - now)

    def record_failure(self, reason: str, now: float, first_s: float, most_s: float) -> None:
        """Wait `first_s` after the first failure, twice as long after each further one, `most_s` at most."""
        self.reason = reason
        self._retry_at = now + min(first_s * 2.0 ** min(self._failures, 32), most_s)
        self._failures += 1

    def reset(self) -> None:
        """Forget the failures: a try succeeded."""
        self.reason, self._failures, self._retry_at = "", 0, 0.0


class EngineCallFailed(EngineUnavailable):
    """The engine answers, but the call for this one container fails."""


class OutageGate:
    """Counts the tasks that wait for the edge, the broker or the engine. While there is one, the runner claims nothing
    new.

    `engine_suspected` is set when the engine did not answer a call; `runner.host.engine_monitor` then probes it.
    """

    def __init__(self) -> None:
        self._waiting = 0
        self._reasons: dict[object, str] = {}
        self._ended = anyio.Event()
        self.engine_suspected = anyio.Event()

    async def wait_until_over(self) -> None:
        """Wait until no task waits."""
        while self._waiting:
            await self._ended.wait()

    @property
    def reasons(self) -> tuple[str, ...]:
        """Return the pending operations and why they are retried, each text once."""
        return tuple(sorted(set(self._reasons.values())))

    @contextmanager
    def waiting(self) -> Iterator[Callable[[bool, str], None]]:
        """Yield a function for one task that retries an operation.

        The task calls it with whether it waits for something that every job needs, and with the reason of the retry.
        """
        counted, token = False, object()

        def report(is_outage: bool, reason: str) -> None:
            nonlocal counted
            self._reasons[token] = reason
            if is_outage == counted:
                return
            self._waiting += is_outage - counted
            counted = is_outage
            if not self._waiting:
                self._ended.set()
                self._ended = anyio.Event()

        try:
            yield report
        finally:
            report(False, "")
            del self._reasons[token]


# Errors that end when a service is back or a person has corrected the configuration. None of them is the job's fault.
TRANSIENT_ERRORS = (BrokerUnreachable, BrokerFull, BrokerDenied, RecordUnreadable, EdgeUnavailable, EngineUnavailable)


# Those of them that concern one job only: that job waits, and the others go on.
SINGLE_JOB_ERRORS = (RecordUnreadable, EngineCallFailed, NotHeld)
