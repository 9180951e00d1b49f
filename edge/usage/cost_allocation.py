"""How the time and the money of hosts are shared out among the jobs that ran there. Pure.

A span with power is cut to the range that is asked for. Its whole time, the wake before the first job and the idle tail
behind the last included, is divided among the jobs that ended in the range and started in the span, in proportion to
their run seconds: who made the host run longest pays most of what it took to have it. Its money is that time at the
span's price. A span without such a job is nobody's: it counts in the whole and in no share. A job whose span has no
price, or whose host has no switch, costs what its host's runner reckoned (`[gpu.price]` there).
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from schemas.usage import JobUsage, PowerUsage

HOUR_S = 3600.0
RUNNER_CURRENCY = "CNY"  # a runner's price names none
CLOCK_SKEW_LIMIT = timedelta(
    seconds=5
)  # the clocks of edge and host differ: a job may seem to start before its host came on


class TimeRange(NamedTuple):
    """From `since` to just before `until`."""

    since: datetime
    until: datetime

    def contains(self, job: JobUsage) -> bool:
        """Whether the job ended in it."""
        return self.since <= job.finished_at < self.until

    def overlap_s(self, since: datetime, until: datetime) -> float:
        """Seconds between the two that lie in it."""
        return max(0.0, (min(until, self.until) - max(since, self.since)).total_seconds())


class JobShare(NamedTuple):
    """What one job is charged with: its host's seconds with power, and money."""

    job: JobUsage
    on_s: float
    cost: float
    currency: str


class CostAllocation(NamedTuple):
    """Everything in a range: the part of each job, seconds with power by host, money by currency."""

    shares: tuple[JobShare, ...]
    on_s: Mapping[str, float]
    costs: Mapping[str, float]


def allocate_costs(jobs: Iterable[JobUsage], spans: Iterable[PowerUsage], within: TimeRange) -> CostAllocation:
    """The parts of all jobs that ended in the range; `spans` are those of all hosts that touch it."""
    by_host: defaultdict[str, list[PowerUsage]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.since):
        by_host[span.host].append(span)
    guests: dict[PowerUsage | None, list[JobUsage]] = {span: [] for there in by_host.values() for span in there}
    for job in filter(within.contains, jobs):
        guests.setdefault(_find_interval(job, by_host), []).append(job)
    parts: list[JobShare] = []
    on_s: defaultdict[str, float] = defaultdict(float)
    costs: defaultdict[str, float] = defaultdict(float)
    for used, by in guests.items():
        shared = _allocate_interval(used, by, within)
        parts += shared
        if used is not None:
            on_s[used.host] += within.overlap_s(used.since, used.until)
        for amount, currency in _interval_costs(used, shared, within):
            costs[currency] += amount
    return CostAllocation(tuple(parts), on_s, {name: amount for name, amount in costs.items() if amount})


def _find_interval(job: JobUsage, by_host: Mapping[str, list[PowerUsage]]) -> PowerUsage | None:
    """The span in which the job started."""
    if job.started_at is None or job.host is None or job.host not in by_host:
        return None
    spans = by_host[job.host]
    at = bisect_right(spans, job.started_at + CLOCK_SKEW_LIMIT, key=lambda span: span.since) - 1
    return spans[at] if at >= 0 and job.started_at <= spans[at].until else None


def _allocate_interval(span: PowerUsage | None, jobs: list[JobUsage], within: TimeRange) -> list[JobShare]:
    on_s = 0.0 if span is None else within.overlap_s(span.since, span.until)
    run_s = sum(job.run_s for job in jobs)
    return [_job_share(job, span, on_s * job.run_s / run_s if run_s else 0.0) for job in jobs]


def _job_share(job: JobUsage, span: PowerUsage | None, on_s: float) -> JobShare:
    if span is None or span.per_hour is None:
        return JobShare(job, on_s, job.cost or 0.0, RUNNER_CURRENCY)
    return JobShare(job, on_s, on_s / HOUR_S * span.per_hour, span.currency)


def _interval_costs(span: PowerUsage | None, shared: list[JobShare], within: TimeRange) -> list[tuple[float, str]]:
    """What a span cost, whoever used it; without a price what its jobs' runners reckoned."""
    if span is None or span.per_hour is None:
        return [(part.cost, part.currency) for part in shared]
    return [(within.overlap_s(span.since, span.until) / HOUR_S * span.per_hour, span.currency)]
