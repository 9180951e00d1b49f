"""Divide the on-time and the cost of hosts among the jobs that ran there. Pure.

An on-interval is cut to the requested time range. Its whole time includes the wake before the first job and the idle
time after the last one. It is divided among the jobs that started in the interval and ended in the range, in
proportion to their run seconds. The cost of an interval is its time at the interval's price.

An interval without such a job counts in the total and in no share. A job costs what the host's runner calculated
(`[gpu.price]` there) if its interval has no price, or its host has no power driver.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from edge.core.clock import HOUR_S
from schemas.host_config import DEFAULT_CURRENCY
from schemas.usage import JobUsage, PowerUsage

# The clocks of edge and host differ, so a job may appear to start before its host was on.
CLOCK_SKEW_LIMIT = timedelta(seconds=5)


class TimeRange(NamedTuple):
    """The time from `since` to just before `until`."""

    since: datetime
    until: datetime

    def contains(self, job: JobUsage) -> bool:
        """Return whether the job ended in the range."""
        return self.since <= job.finished_at < self.until

    def overlap_s(self, since: datetime, until: datetime) -> float:
        """Return how many seconds from `since` to `until` lie in the range."""
        return max(0.0, (min(until, self.until) - max(since, self.since)).total_seconds())


class JobShare(NamedTuple):
    """A job's share: `on_s` seconds of its host's on-time, and the cost."""

    job: JobUsage
    on_s: float
    cost: float
    currency: str


class CostAllocation(NamedTuple):
    """The allocation of a range: the share of each job, on-time in seconds by host, and cost by currency."""

    shares: tuple[JobShare, ...]
    on_s: Mapping[str, float]
    costs: Mapping[str, float]


def allocate_costs(jobs: Iterable[JobUsage], intervals: Iterable[PowerUsage], within: TimeRange) -> CostAllocation:
    """Allocate the costs of a range. `jobs` and `intervals`: of all owners and hosts, also outside the range."""
    by_host: defaultdict[str, list[PowerUsage]] = defaultdict(list)
    for interval in sorted(intervals, key=lambda interval: interval.since):
        by_host[interval.host].append(interval)
    jobs_by_interval: dict[PowerUsage | None, list[JobUsage]] = {
        interval: [] for of_host in by_host.values() for interval in of_host
    }
    for job in filter(within.contains, jobs):
        jobs_by_interval.setdefault(_find_interval(job, by_host), []).append(job)
    shares: list[JobShare] = []
    on_s: defaultdict[str, float] = defaultdict(float)
    costs: defaultdict[str, float] = defaultdict(float)
    for maybe_interval, its_jobs in jobs_by_interval.items():
        its_shares = _allocate_interval(maybe_interval, its_jobs, within)
        shares += its_shares
        if maybe_interval is not None:
            on_s[maybe_interval.host] += within.overlap_s(maybe_interval.since, maybe_interval.until)
        for amount, currency in _interval_costs(maybe_interval, its_shares, within):
            costs[currency] += amount
    return CostAllocation(tuple(shares), on_s, {name: amount for name, amount in costs.items() if amount})


def _find_interval(job: JobUsage, by_host: Mapping[str, list[PowerUsage]]) -> PowerUsage | None:
    """Return the interval in which the job started."""
    if job.started_at is None or job.host is None or job.host not in by_host:
        return None
    intervals = by_host[job.host]
    at = bisect_right(intervals, job.started_at + CLOCK_SKEW_LIMIT, key=lambda interval: interval.since) - 1
    return intervals[at] if at >= 0 and job.started_at <= intervals[at].until else None


def _allocate_interval(interval: PowerUsage | None, jobs: list[JobUsage], within: TimeRange) -> list[JobShare]:
    on_s = 0.0 if interval is None else within.overlap_s(interval.since, interval.until)
    run_s = sum(job.run_s for job in jobs)
    return [_job_share(job, interval, on_s * job.run_s / run_s if run_s else 0.0) for job in jobs]


def _job_share(job: JobUsage, interval: PowerUsage | None, on_s: float) -> JobShare:
    if interval is None or interval.per_hour is None:
        return JobShare(job, on_s, job.cost or 0.0, DEFAULT_CURRENCY)
    return JobShare(job, on_s, on_s / HOUR_S * interval.per_hour, interval.currency)


def _interval_costs(interval: PowerUsage | None, shares: list[JobShare], within: TimeRange) -> list[tuple[float, str]]:
    """Return the cost of an interval; without a price, the costs that the runners calculated for its jobs."""
    if interval is None or interval.per_hour is None:
        return [(share.cost, share.currency) for share in shares]
    return [(within.overlap_s(interval.since, interval.until) / HOUR_S * interval.per_hour, interval.currency)]
