"""Errors that pass, the gate that stops claiming during an outage, and a backoff."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bus.interface import BrokerDenied, BrokerFull, BrokerUnreachable
from bus.notifier import Notifier
from runner.assets.port import EdgeUnavailable, NotHeld, SecretsUnavailable
from runner.engines.port import EngineUnavailable
from schemas.backoff import Backoff
from schemas.events import RecordUnreadable


class FailureBackoff:
    """Backoff of one operation, with its failures. Times are monotonic seconds; `reason` is the last failure, or ""."""

    def __init__(self, backoff: Backoff) -> None:
        self.reason = ""
        self._backoff = backoff
        self._failures = 0
        self._retry_at = 0.0

    def is_waiting(self, now: float) -> bool:
        """Return whether it is too early for the next try."""
        return self.left_s(now) > 0

    def left_s(self, now: float) -> float:
        """Return the seconds until the next try."""
        return max(0.0, self._retry_at - now)

    def record_failure(self, reason: str, now: float) -> None:
        """Record a failure: the next try has to wait, twice as long as after the one before."""
        self.reason = reason
        self._retry_at = now + self._backoff.delay_s(self._failures)
        self._failures += 1

    def reset(self) -> None:
        """Forget the failures: a try succeeded."""
        self.reason, self._failures, self._retry_at = "", 0, 0.0


class EngineCallFailed(EngineUnavailable):
    """The engine answers, but the call for this one container fails."""


class OutageGate:
    """Counts the tasks that wait for the edge, the broker or the engine.

    While there is one, the runner claims nothing new.

    `engine_suspected` is notified when the engine did not answer a call; `runner.host.engine_monitor` then probes it.
    """

    def __init__(self) -> None:
        self._waiting = 0
        self._reasons: dict[object, str] = {}
        self._ended = Notifier()
        self.engine_suspected = Notifier()

    async def wait_until_over(self) -> None:
        """Wait until no task waits for a shared dependency."""
        await self._ended.wait_until(lambda: not self._waiting)

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
                self._ended.notify()

        try:
            yield report
        finally:
            report(False, "")
            del self._reasons[token]


# Errors that end when a service is back or a person has corrected the configuration. None of them is the job's fault.
TRANSIENT_ERRORS = (BrokerUnreachable, BrokerFull, BrokerDenied, RecordUnreadable, EdgeUnavailable, EngineUnavailable)


# Those of them that concern one job only: that job waits, and the others go on.
SINGLE_JOB_ERRORS = (RecordUnreadable, EngineCallFailed, NotHeld, SecretsUnavailable)
