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

from schemas.usage import JobUse, PowerUse

HOUR_S = 3600.0
RUNNERS_CURRENCY = "CNY"  # a runner's price names none
LATE = timedelta(seconds=5)  # the clocks of edge and host differ: a job may seem to start before its host came on


class Range(NamedTuple):
    """From `since` to just before `until`."""

    since: datetime
    until: datetime

    def holds(self, job: JobUse) -> bool:
        """Whether the job ended in it."""
        return self.since <= job.finished_at < self.until

    def cut_s(self, since: datetime, until: datetime) -> float:
        """Seconds between the two that lie in it."""
        return max(0.0, (min(until, self.until) - max(since, self.since)).total_seconds())


class Part(NamedTuple):
    """What one job is charged with: its host's seconds with power, and money."""

    job: JobUse
    on_s: float
    money: float
    currency: str


class Whole(NamedTuple):
    """Everything in a range: the part of each job, seconds with power by host, money by currency."""

    parts: tuple[Part, ...]
    on_s: Mapping[str, float]
    costs: Mapping[str, float]


def share_out(jobs: Iterable[JobUse], spans: Iterable[PowerUse], within: Range) -> Whole:
    """The parts of all jobs that ended in the range; `spans` are those of all hosts that touch it."""
    by_host: defaultdict[str, list[PowerUse]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.since):
        by_host[span.host].append(span)
    guests: dict[PowerUse | None, list[JobUse]] = {span: [] for there in by_host.values() for span in there}
    for job in filter(within.holds, jobs):
        guests.setdefault(_span_of(job, by_host), []).append(job)
    parts: list[Part] = []
    on_s: defaultdict[str, float] = defaultdict(float)
    costs: defaultdict[str, float] = defaultdict(float)
    for used, by in guests.items():
        shared = _shared(used, by, within)
        parts += shared
        if used is not None:
            on_s[used.host] += within.cut_s(used.since, used.until)
        for amount, currency in _money(used, shared, within):
            costs[currency] += amount
    return Whole(tuple(parts), on_s, {name: amount for name, amount in costs.items() if amount})


def _span_of(job: JobUse, by_host: Mapping[str, list[PowerUse]]) -> PowerUse | None:
    """The span in which the job started."""
    if job.started_at is None or job.host is None or job.host not in by_host:
        return None
    spans = by_host[job.host]
    at = bisect_right(spans, job.started_at + LATE, key=lambda span: span.since) - 1
    return spans[at] if at >= 0 and job.started_at <= spans[at].until else None


def _shared(span: PowerUse | None, jobs: list[JobUse], within: Range) -> list[Part]:
    on_s = 0.0 if span is None else within.cut_s(span.since, span.until)
    run_s = sum(job.run_s for job in jobs)
    return [_part(job, span, on_s * job.run_s / run_s if run_s else 0.0) for job in jobs]


def _part(job: JobUse, span: PowerUse | None, on_s: float) -> Part:
    if span is None or span.per_hour is None:
        return Part(job, on_s, job.cost or 0.0, RUNNERS_CURRENCY)
    return Part(job, on_s, on_s / HOUR_S * span.per_hour, span.currency)


def _money(span: PowerUse | None, shared: list[Part], within: Range) -> list[tuple[float, str]]:
    """What a span cost, whoever used it; without a price what its jobs' runners reckoned."""
    if span is None or span.per_hour is None:
        return [(part.money, part.currency) for part in shared]
    return [(within.cut_s(span.since, span.until) / HOUR_S * span.per_hour, span.currency)]
