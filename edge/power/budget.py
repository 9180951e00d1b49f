"""The daily budget of a host: its on-time today, from its power record, in its own time zone. Pure."""

from datetime import datetime

from edge.core.clock import HOUR_S
from schemas.host_config import HostConfig
from schemas.power import ON_INTERVAL_LIMIT, DailyOnTime, OnInterval, PowerRecord


def on_time_today_s(record: PowerRecord, at: datetime, rules: HostConfig) -> float:
    """Return the on-time in seconds on the day of `at`, including the current interval."""
    local = rules.local_time(at)
    ended = record.daily_on_time.on_s if record.daily_on_time.day == local.date().isoformat() else 0.0
    if record.on_since is None:
        return ended
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
    return ended + max(0.0, (at - max(record.on_since, midnight)).total_seconds())


def close_daily_on_time(record: PowerRecord, at: datetime, rules: HostConfig) -> DailyOnTime:
    """Return the on-time of the day when the host powers off at `at`."""
    return DailyOnTime(rules.local_time(at).date().isoformat(), on_time_today_s(record, at, rules))


def close_on_interval(record: PowerRecord, at: datetime) -> tuple[OnInterval, ...]:
    """Return the on-intervals, including the one that ends at `at`."""
    if record.on_since is None or at <= record.on_since:
        return record.on_intervals
    return (*record.on_intervals, OnInterval(record.on_since, at, record.on_reason))[-ON_INTERVAL_LIMIT:]


def is_budget_exhausted(record: PowerRecord, at: datetime, rules: HostConfig) -> bool:
    """Return whether the daily budget, in hours or in money, is used up."""
    if rules.budget is None:
        return False
    hours = on_time_today_s(record, at, rules) / HOUR_S
    money = hours * rules.price.hourly_cost if rules.price else 0.0
    limits = ((rules.budget.hours, hours), (rules.budget.money, money))
    return any(limit is not None and spent >= limit for limit, spent in limits)
