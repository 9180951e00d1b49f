"""What a host's day has cost so far: seconds with power, from its record, in its own time zone."""

from datetime import datetime

from schemas.power import SPANS, Lit, PowerRecord, Spend
from schemas.switch import Switched

HOUR_S = 3600.0


def spent_s(record: PowerRecord, at: datetime, rules: Switched) -> float:
    """Seconds with power on the day of `at`, the interval that still runs included."""
    local = rules.local(at)
    ended = record.spend.on_s if record.spend.day == local.date().isoformat() else 0.0
    if record.lit_since is None:
        return ended
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
    return ended + max(0.0, (at - max(record.lit_since, midnight)).total_seconds())


def settled(record: PowerRecord, at: datetime, rules: Switched) -> Spend:
    """The day's account once the light is out."""
    return Spend(rules.local(at).date().isoformat(), spent_s(record, at, rules))


def spans(record: PowerRecord, at: datetime) -> tuple[Lit, ...]:
    """The spans with power, the one that ends now included."""
    if record.lit_since is None or at <= record.lit_since:
        return record.spans
    return (*record.spans, Lit(record.lit_since, at, record.lit_why))[-SPANS:]


def exhausted(record: PowerRecord, at: datetime, rules: Switched) -> bool:
    """Whether the daily budget, in hours or in money, is used up."""
    if rules.budget is None:
        return False
    hours = spent_s(record, at, rules) / HOUR_S
    money = hours * rules.price.hour if rules.price else 0.0
    limits = ((rules.budget.hours, hours), (rules.budget.money, money))
    return any(limit is not None and spent >= limit for limit, spent in limits)
