"""Rates: token buckets that hold the events of one minute and refill steadily."""

from collections.abc import Callable
from math import ceil
from typing import NamedTuple

from msgspec import Struct

from edge.core.clock import MINUTE_S


class RateState(NamedTuple):
    """The events that a rate still allows after one. `reset_s`: until it allows all of them again.

    `retry_after_s`: until the next event is allowed; 0 if this one was.
    """

    limit: int
    remaining: int
    reset_s: int
    retry_after_s: int


class _TokenBucket(Struct):
    """Remaining events at the time `at`, in seconds."""

    tokens: float
    at: float


class RateLimiter:
    """Counts the events of each name. The names must be bounded: there is one bucket for each, to the end.

    `monotonic`: in seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._buckets: dict[str, _TokenBucket] = {}

    def count(self, name: str, per_minute: int) -> RateState:
        """Count an event of `name` if its rate allows it."""
        now = self._monotonic()
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = _TokenBucket(float(per_minute), now)
        bucket.tokens = min(per_minute, bucket.tokens + (now - bucket.at) * per_minute / MINUTE_S)
        bucket.at = now
        is_allowed = bucket.tokens >= 1
        if is_allowed:
            bucket.tokens -= 1
        left = bucket.tokens
        return RateState(
            per_minute,
            int(left),
            ceil((per_minute - left) * MINUTE_S / per_minute),
            0 if is_allowed else ceil((1 - left) * MINUTE_S / per_minute),
        )
