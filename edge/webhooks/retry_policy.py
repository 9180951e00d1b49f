"""When a delivery is tried again (PROTOCOLS 5)."""

from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from msgspec import Struct

MINUTE_S, HOUR_S = 60.0, 3600.0
RETRY_DELAYS_S = (5.0, 5 * MINUTE_S, 30 * MINUTE_S, 2 * HOUR_S, 5 * HOUR_S, 10 * HOUR_S, 14 * HOUR_S, 20 * HOUR_S)
RETRY_JITTER = 0.2  # of each, added
RETRY_AFTER_LIMIT_S = 24 * HOUR_S  # a receiver may ask for, with Retry-After


def retry_delay_s(
    failed: int, asked_s: float, jitter: float, retries_s: tuple[float, ...] = RETRY_DELAYS_S
) -> float | None:
    """Seconds to wait after `failed` tries, None when that was the last; `asked_s` is what the receiver asks for.

    `jitter` from 0 to 1 spreads what failed together.
    """
    if failed > len(retries_s):
        return None
    return max(retries_s[failed - 1] * (1 + RETRY_JITTER * jitter), min(asked_s, RETRY_AFTER_LIMIT_S))


def parse_retry_after_s(header: str | None, now: datetime) -> float:
    """Seconds in a Retry-After header (RFC 9110, 10.2.3), 0 for none or for one that cannot be read."""
    text = (header or "").strip()
    if text.isdecimal():
        return float(text[:9])
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # the latter for a year that no int of C holds
        return 0.0
    return max(0.0, ((at if at.tzinfo else at.replace(tzinfo=UTC)) - now).total_seconds())


# MERGED edge/webhooks/receivers.py: Receivers as this edge knows them: how much is under way to each, and which are
# dead at the moment. / A dead or slow receiver must not hold the places that others need, so what is for it goes back
# to the broker.


FAILURE_THRESHOLD = 5  # tries in a row without an answer
OPEN_MIN_S = 5.0
OPEN_MAX_S = 300.0
DEFAULT_ATTEMPT_S = 0.05  # a try, until one was measured
_SMOOTHING = 0.3  # how much of what is known each try replaces


class _ReceiverState(Struct):
    active: int = 0
    consecutive_failures: int = 0
    open_until: float = 0.0
    deferred: int = 0
    attempt_s: float = DEFAULT_ATTEMPT_S


class ReceiverCircuitBreaker:
    """`each`: tries at a time to one receiver. `clock` in seconds, `dice` from 0 to 1."""

    def __init__(self, each: int, clock: Callable[[], float], dice: Callable[[], float]) -> None:
        self._limit_per_receiver = each
        self._clock = clock
        self._random = dice
        self._receivers: dict[str, _ReceiverState] = {}

    def try_acquire(self, name: str) -> float | None:
        """Begin a try: None, or the seconds after which to ask again. A begun try must `leave`."""
        one = self._receivers.setdefault(name, _ReceiverState())
        left = one.open_until - self._clock()
        room = (
            1 if one.consecutive_failures >= FAILURE_THRESHOLD else self._limit_per_receiver
        )  # who was dead is probed by one
        if left <= 0 and one.active < room:
            one.active += 1
            one.deferred = 0
            return None
        # Until about its turn by what a try takes here, so that neither a quick receiver waits nor putting off what a
        # slow one cannot take becomes the work.
        one.deferred += 1
        turn = min(OPEN_MAX_S, one.deferred * one.attempt_s / room)
        return max(left, one.attempt_s) + turn * (1 + self._random()) / 2

    def release(self, name: str, *, answered: bool, took_s: float) -> None:
        """The try has ended; `answered`: whatever it said."""
        one = self._receivers[name]
        one.active -= 1
        one.attempt_s += _SMOOTHING * (took_s - one.attempt_s)
        one.consecutive_failures = 0 if answered else one.consecutive_failures + 1
        if one.consecutive_failures >= FAILURE_THRESHOLD:
            rest = min(OPEN_MAX_S, OPEN_MIN_S * 2 ** min(one.consecutive_failures - FAILURE_THRESHOLD, 10))
            one.open_until = self._clock() + rest
        elif not one.active and not one.consecutive_failures:
            del self._receivers[name]
