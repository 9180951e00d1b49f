"""A wait that doubles with every failure in a row."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio
import anyio.to_thread

from bus.interface import BrokerDenied, BrokerFull, BrokerUnreachable
from runner.assets.port import EdgeUnavailable, NotHeld
from runner.engines.port import EngineUnavailable
from schemas.events import RecordUnreadable


class FailureBackoff:
    """Between two tries at something that failed; times are monotonic seconds. `why`: of the last failure, or ""."""

    def __init__(self) -> None:
        self.reason = ""
        self._failures = 0
        self._retry_at = 0.0

    def is_waiting(self, now: float) -> bool:
        """Whether it is too early to try again."""
        return self.left_s(now) > 0

    def left_s(self, now: float) -> float:
        """Seconds until the next try."""
        return max(0.0, self._retry_at - now)

    def record_failure(self, why: str, now: float, first_s: float, most_s: float) -> None:
        """It failed: wait `first_s`, twice that after the next failure, `most_s` at most."""
        self.reason = why
        self._retry_at = now + min(first_s * 2.0 ** min(self._failures, 32), most_s)
        self._failures += 1

    def reset(self) -> None:
        """It went well."""
        self.reason, self._failures, self._retry_at = "", 0, 0.0


class EngineCallFailed(EngineUnavailable):
    """The engine is there, and does not do this for this container."""


class OutageGate:
    """Who waits for the edge, the broker or the engine. While anybody does, the runner claims nothing new.

    `suspected` is set when the engine left a call unanswered; runner.enginewatch takes it from there.
    """

    def __init__(self) -> None:
        self._waiting = 0
        self._reasons: dict[object, str] = {}
        self._ended = anyio.Event()
        self.engine_suspected = anyio.Event()

    async def wait_until_over(self) -> None:
        """Wait until nobody waits."""
        while self._waiting:
            await self._ended.wait()

    @property
    def reasons(self) -> tuple[str, ...]:
        """What is not done yet and tried again, each with the reason, once."""
        return tuple(sorted(set(self._reasons.values())))

    @contextmanager
    def waiting(self) -> Iterator[Callable[[bool, str], None]]:
        """For one who asks again and again: what it is given to say is whether it waits now for what all need, and why
        it asks again.
        """
        waits, mine = False, object()

        def say(now: bool, why: str) -> None:
            nonlocal waits
            self._reasons[mine] = why
            if now == waits:
                return
            self._waiting += now - waits
            waits = now
            if not self._waiting:
                self._ended.set()
                self._ended = anyio.Event()

        try:
            yield say
        finally:
            say(False, "")
            del self._reasons[mine]


# What passes when somebody is back, or has put his set-up right. Nothing of it is the job's fault. ALONE is one job's
# trouble, so that one waits alone; the rest is everybody's.
TRANSIENT_ERRORS = (BrokerUnreachable, BrokerFull, BrokerDenied, RecordUnreadable, EdgeUnavailable, EngineUnavailable)


SINGLE_JOB_ERRORS = (RecordUnreadable, EngineCallFailed, NotHeld)
