"""Time as a parameter: what the services call to learn it, and the whole microseconds that the index sorts by."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

Clock = Callable[[], datetime]
Entropy = Callable[[int], bytes]  # os.urandom, or a test's own

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def utc_now() -> datetime:
    """The wall clock in UTC."""
    return datetime.now(UTC)


def micros(moment: datetime) -> int:
    """Microseconds since 1970, exact: a float would round."""
    return (moment - _EPOCH) // _MICROSECOND
