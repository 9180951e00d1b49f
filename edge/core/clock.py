"""Time and randomness as parameters, and exact microseconds, by which the index sorts."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

Clock = Callable[[], datetime]
Entropy = Callable[[int], bytes]  # os.urandom, or a deterministic source in tests

MINUTE_S, HOUR_S = 60.0, 3600.0

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def utc_now() -> datetime:
    """Return the current time of the wall clock, in UTC."""
    return datetime.now(UTC)


def micros(moment: datetime) -> int:
    """Return microseconds since 1970, exactly: a float would round."""
    return (moment - _EPOCH) // _MICROSECOND
