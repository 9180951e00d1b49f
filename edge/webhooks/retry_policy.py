"""When a webhook delivery is attempted again: retry delays, Retry-After, and a circuit breaker. Pure.

An unreachable or slow receiver must not occupy the attempt slots that others need. Its deliveries go back to the
broker with a delay.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from msgspec import Struct

from edge.core.clock import HOUR_S, MINUTE_S
from schemas.backoff import Backoff

RETRY_DELAYS_S = (5.0, 5 * MINUTE_S, 30 * MINUTE_S, 2 * HOUR_S, 5 * HOUR_S, 10 * HOUR_S, 14 * HOUR_S, 20 * HOUR_S)
RETRY_JITTER = 0.2  # fraction of each delay that is added at random
RETRY_AFTER_LIMIT_S = 24 * HOUR_S  # the longest Retry-After that is honoured
FAILURE_THRESHOLD = 5  # consecutive attempts without a response that open the circuit
OPEN_MAX_S = 300.0
OPEN_BACKOFF = Backoff(5.0, OPEN_MAX_S)
DEFAULT_ATTEMPT_S = 0.05  # assumed duration of an attempt before one was measured
_SMOOTHING = 0.3  # weight of the latest attempt in the moving average


def retry_delay_s(
    failed: int, requested_s: float, jitter: float, retries_s: tuple[float, ...] = RETRY_DELAYS_S
) -> float | None:
    """Return the seconds to wait after `failed` attempts, or None after the last one.

    `requested_s`: the receiver's Retry-After. `jitter` in [0, 1) spreads deliveries that failed at the same time.
    """
    if failed > len(retries_s):
        return None
    return max(retries_s[failed - 1] * (1 + RETRY_JITTER * jitter), min(requested_s, RETRY_AFTER_LIMIT_S))


def parse_retry_after_s(header: str | None, now: datetime) -> float:
    """Return the seconds of a Retry-After header (RFC 9110, 10.2.3); 0 if it is absent or malformed."""
    text = (header or "").strip()
    if text.isdecimal():
        return float(text[:9])
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # OverflowError: a year that does not fit a C int
        return 0.0
    return max(0.0, ((at if at.tzinfo else at.replace(tzinfo=UTC)) - now).total_seconds())


class _ReceiverState(Struct):
    active: int = 0
    consecutive_failures: int = 0
    open_until: float = 0.0
    deferred: int = 0
    attempt_s: float = DEFAULT_ATTEMPT_S


class ReceiverCircuitBreaker:
    """Limit concurrent attempts to each receiver, and to one while its circuit is open.

    `per_receiver`: concurrent attempts. `monotonic`: in seconds. `random`: returns a number in [0, 1), for jitter.
    """

    def __init__(self, per_receiver: int, monotonic: Callable[[], float], random: Callable[[], float]) -> None:
        self._limit_per_receiver = per_receiver
        self._monotonic = monotonic
        self._random = random
        self._receivers: dict[str, _ReceiverState] = {}

    def try_acquire(self, name: str) -> float | None:
        """Start an attempt and return None, or return the seconds to wait. A started attempt must be released."""
        receiver = self._receivers.setdefault(name, _ReceiverState())
        left_s = receiver.open_until - self._monotonic()
        is_failing = receiver.consecutive_failures >= FAILURE_THRESHOLD
        limit = 1 if is_failing else self._limit_per_receiver  # a failing receiver is probed by one attempt
        if left_s <= 0 and receiver.active < limit:
            receiver.active += 1
            receiver.deferred = 0
            return None
        # The delay is about the time until a slot is free, by the mean duration of an attempt. A fast receiver then
        # does not wait, and a slow one does not keep the dispatcher busy with delays.
        receiver.deferred += 1
        queue_s = min(OPEN_MAX_S, receiver.deferred * receiver.attempt_s / limit)
        return max(left_s, receiver.attempt_s) + queue_s * (1 + self._random()) / 2

    def release(self, name: str, *, answered: bool, took_s: float) -> None:
        """End an attempt. `answered`: the receiver sent a response, whatever its status."""
        receiver = self._receivers[name]
        receiver.active -= 1
        receiver.attempt_s += _SMOOTHING * (took_s - receiver.attempt_s)
        receiver.consecutive_failures = 0 if answered else receiver.consecutive_failures + 1
        if receiver.consecutive_failures >= FAILURE_THRESHOLD:
            receiver.open_until = self._monotonic() + OPEN_BACKOFF.delay_s(
                receiver.consecutive_failures - FAILURE_THRESHOLD
            )
        elif not receiver.active and not receiver.consecutive_failures:
            del self._receivers[name]
