"""When a delivery is tried again (PROTOCOLS 5)."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MINUTE, HOUR = 60.0, 3600.0
RETRIES_S = (5.0, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR)
JITTER = 0.2  # of each, added
LONGEST_S = 24 * HOUR  # a receiver may ask for, with Retry-After


def pause_s(failed: int, asked_s: float, jitter: float, retries_s: tuple[float, ...] = RETRIES_S) -> float | None:
    """Seconds to wait after `failed` tries, None when that was the last; `asked_s` is what the receiver asks for.

    `jitter` from 0 to 1 spreads what failed together.
    """
    if failed > len(retries_s):
        return None
    return max(retries_s[failed - 1] * (1 + JITTER * jitter), min(asked_s, LONGEST_S))


def retry_after_s(header: str | None, now: datetime) -> float:
    """Seconds in a Retry-After header (RFC 9110, 10.2.3), 0 for none or for one that cannot be read."""
    text = (header or "").strip()
    if text.isdecimal():
        return float(text[:9])
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # the latter for a year that no int of C holds
        return 0.0
    return max(0.0, ((at if at.tzinfo else at.replace(tzinfo=UTC)) - now).total_seconds())
