"""Usage: how long hosts were on, what jobs used, and what both cost.

`UsageRecorder` writes one row to the stream USAGE for each ended round of a job, and one for each on-interval of a
host. Both are derived from durable data, so that no crash loses a row. Each row has its own subject, so several edges,
or a restarted one, write it once.

- Jobs: the index reads all records at start, then every change in the order of STATE. Rows are written in this order.
  The revision of the last row tells where the previous process stopped.
- On-intervals: the power record of a host keeps the latest ones, and each poll offers all of them again.

`UsageReports` builds the report of a time range from these rows, for one owner or for all owners. `allocate_costs`,
which is pure, divides the on-time and the cost of hosts among the jobs that ran there. An on-interval is cut to the
time range. Its whole time includes the wake before the first job and the idle time after the last one. It is divided
among the jobs that started in the interval and ended in the range, in proportion to their run seconds. The cost of an
interval is its time at the interval's price.

An interval without such a job counts in the total and in no share. A job costs what the host's runner calculated
(`[gpu.price]` there) if its interval has no price, or its host has no power driver.
"""

from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import structlog
from anyio import create_task_group, sleep

from bus.interface import BusError, RecordChange, UsageLog
from bus.notifier import Notifier
from edge.core.clock import HOUR_S, Clock
from edge.core.validation import input_invalid_problem
from edge.index.index import JobIndex
from schemas.host_config import DEFAULT_CURRENCY, PowerPrice
from schemas.job import FINAL_STATUSES, Job
from schemas.job_view import Cost, EndpointUsage, JobUsage, PowerUsage, UsageReport
from schemas.power import HISTORY_LIMIT, OnInterval, PowerRecord
from schemas.problems import FieldError

RETRY_DELAY_S = 5.0  # while the broker is unreachable or full
POLL_INTERVAL_S = 15.0  # of the on-intervals of hosts

_log = structlog.get_logger()

PowerRecords = Callable[[], Mapping[str, PowerRecord]]
"""The power records of the declared hosts, as last read."""


class UsageRecorder:
    """Writes usage rows. `written_revision`: the ended jobs up to this revision have their rows."""

    def __init__(
        self, usage_log: UsageLog, index: JobIndex, power_records: PowerRecords, prices: Mapping[str, PowerPrice | None]
    ) -> None:
        self._usage_log = usage_log
        self._power_records = power_records
        self._prices = prices
        self._pending: deque[JobUsage] = deque()
        self._written_intervals: set[tuple[str, OnInterval]] = set()
        self._work = Notifier()
        self.written_revision = 0
        index.subscribe_records(self._on_record_changes)

    async def load_position(self) -> None:
        """Read where the previous process stopped. Call it before the index runs. Raises BusError."""
        last = await self._usage_log.last_job_row()
        self.written_revision = last.revision if last else 0

    async def run(self) -> None:
        """Write the rows of ended jobs and of on-intervals until cancelled."""
        async with create_task_group() as tasks:
            tasks.start_soon(self._record_hosts_forever)
            while True:
                await self._work.wait_until(lambda: bool(self._pending))
                await self.write_pending()

    async def write_pending(self) -> None:
        """Write all pending rows in order; a row that cannot be written is retried before the next one."""
        while self._pending:
            await self._write_with_retry(self._pending[0])
            self.written_revision = self._pending.popleft().revision

    async def write_on_intervals(self) -> None:
        """Write the on-intervals that this process has not written yet."""
        current = {(host, one) for host, record in self._power_records().items() for one in record.on_intervals}
        for host, interval in sorted(current - self._written_intervals, key=lambda item: item[1].until):
            await self._write_with_retry(power_usage(host, interval, self._prices.get(host)))
        self._written_intervals = current

    async def _record_hosts_forever(self) -> None:
        while True:
            await self.write_on_intervals()
            await sleep(POLL_INTERVAL_S)

    async def _write_with_retry(self, row: JobUsage | PowerUsage) -> None:
        while True:
            try:
                await self._usage_log.add(row)
            except BusError as error:
                _log.warning("usage_write_failed", error=str(error))
                await sleep(RETRY_DELAY_S)
            else:
                return

    def _on_record_changes(self, changes: Sequence[RecordChange]) -> None:
        for change in changes:
            job = None if change.record is None else change.record.job
            if job is not None and job.status in FINAL_STATUSES and change.revision > self.written_revision:
                self._pending.append(job_usage(job, change.revision))
        if self._pending:
            self._work.notify()


def job_usage(job: Job, revision: int) -> JobUsage:
    """Return the row of a job that has ended."""
    return JobUsage(
        owner=job.owner,
        id=job.id,
        round=job.round,
        revision=revision,
        endpoint=job.endpoint,
        status=job.status,
        started_at=job.started_at,
        finished_at=job.finished_at or job.created_at,
        host=job.claim.host if job.claim else None,
        run_s=job.usage.run_s or 0.0,
        gpus=len(job.claim.gpu_uuids) if job.claim else 0,
        energy_j=job.usage.gpu_energy_j,
        cost=job.usage.cost,
    )


def power_usage(host: str, interval: OnInterval, price: PowerPrice | None) -> PowerUsage:
    """Return the row of an on-interval, at the current price."""
    per_hour, currency = (price.hourly_cost, price.currency) if price else (None, "")
    return PowerUsage(
        host=host,
        since=interval.since,
        until=interval.until,
        on_reason=interval.why,
        per_hour=per_hour,
        currency=currency,
    )


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


DEFAULT_RANGE = timedelta(days=30)
EARLIEST_START = datetime(1970, 1, 1, tzinfo=UTC)  # no row is older, and the year 1 minus a time zone is not a date
STORAGE_DELAY_LIMIT = timedelta(hours=1)  # a row is stored this long after its end, clock skew included


class UsageReports:
    """Builds usage reports. `power_records`: of the declared hosts. `prices`: None for a host without a price."""

    def __init__(
        self,
        usage_log: UsageLog,
        power_records: Callable[[], Mapping[str, PowerRecord]],
        prices: Mapping[str, PowerPrice | None],
        now: Clock,
    ) -> None:
        self._usage_log = usage_log
        self._power_records = power_records
        self._prices = prices
        self._now = now

    async def report(
        self, owner: str | None, since: datetime | None = None, until: datetime | None = None
    ) -> UsageReport:
        """Return the report of `owner`, or of all owners for None. Default: the last 30 days until now.

        Raises ProblemError `input_invalid`, BusError.
        """
        within = self._report_range(since, until)
        jobs = await self._usage_log.job_rows(within.since - STORAGE_DELAY_LIMIT)
        whole = allocate_costs(jobs, await self._on_intervals(within), within)
        saved_s = sum(self._off_s(host, record, whole, within) for host, record in self._power_records().items())
        if owner is None:
            return _build_report(None, within, whole, saved_s)
        own = _owner_allocation(owner, whole)
        own_s, shared_s = sum(own.on_s.values()), sum(share.on_s for share in whole.shares)
        return _build_report(owner, within, own, saved_s * own_s / shared_s if shared_s else 0.0)

    def _report_range(self, since: datetime | None, until: datetime | None) -> TimeRange:
        now = self._now()
        end = now if until is None else min(max(until, EARLIEST_START), now)
        start = end - DEFAULT_RANGE if since is None else max(since, EARLIEST_START)
        if start >= end:
            raise input_invalid_problem(FieldError("from", "must be before `to`, and in the past"))
        return TimeRange(start, end)

    async def _on_intervals(self, within: TimeRange) -> list[PowerUsage]:
        """Return the stored on-intervals, those that are not stored yet, and the current one of each host."""
        intervals = {
            (row.host, row.since): row for row in await self._usage_log.power_rows(within.since - STORAGE_DELAY_LIMIT)
        }
        for host, record in self._power_records().items():
            current = [OnInterval(record.on_since, self._now(), record.on_reason)] if record.on_since else []
            for interval in (*record.on_intervals, *current):
                intervals.setdefault((host, interval.since), power_usage(host, interval, self._prices.get(host)))
        return [row for row in intervals.values() if within.overlap_s(row.since, row.until)]

    def _off_s(self, host: str, record: PowerRecord, whole: CostAllocation, within: TimeRange) -> float:
        """Return for how many seconds of the range the host was off since it was declared."""
        is_truncated = len(record.history) >= HISTORY_LIMIT
        known_since = (
            within.since if is_truncated else min([record.since, *(change.at for change in record.history[:1])])
        )
        return max(0.0, within.overlap_s(known_since, within.until) - whole.on_s.get(host, 0.0))


def _owner_allocation(owner: str, whole: CostAllocation) -> CostAllocation:
    """Return the owner's part of an allocation."""
    shares = tuple(share for share in whole.shares if share.job.owner == owner)
    on_s: defaultdict[str, float] = defaultdict(float)
    for share in shares:
        on_s[share.job.host or ""] += share.on_s
    return CostAllocation(shares, on_s, _costs_by_currency(shares))


def _build_report(owner: str | None, within: TimeRange, whole: CostAllocation, saved_s: float) -> UsageReport:
    by_endpoint: defaultdict[str, list[JobShare]] = defaultdict(list)
    for share in whole.shares:
        by_endpoint[share.job.endpoint].append(share)
    endpoints = tuple(_endpoint_usage(name, by_endpoint[name]) for name in sorted(by_endpoint))
    costs = tuple(Cost(amount, currency) for currency, amount in sorted(whole.costs.items(), key=lambda one: -one[1]))
    return UsageReport(
        since=within.since,
        until=within.until,
        owner=owner,
        jobs=sum(usage.jobs for usage in endpoints),
        gpu_s=sum(usage.gpu_s for usage in endpoints),
        energy_j=sum(usage.energy_j for usage in endpoints),
        cost=_largest_cost(costs),
        costs=costs,
        hours_on=sum(whole.on_s.values()) / HOUR_S,
        hours_saved=saved_s / HOUR_S,
        by_endpoint=endpoints,
    )


def _endpoint_usage(endpoint: str, shares: list[JobShare]) -> EndpointUsage:
    costs = [Cost(amount, currency) for currency, amount in _costs_by_currency(shares).items()]
    return EndpointUsage(
        endpoint=endpoint,
        jobs=len(shares),
        gpu_s=sum(share.job.run_s * share.job.gpus for share in shares),
        energy_j=sum(share.job.energy_j or 0.0 for share in shares),
        cost=_largest_cost(costs),
        hours_on=sum(share.on_s for share in shares) / HOUR_S,
    )


def _costs_by_currency(shares: Iterable[JobShare]) -> Mapping[str, float]:
    costs: defaultdict[str, float] = defaultdict(float)
    for share in shares:
        if share.cost:
            costs[share.currency] += share.cost
    return costs


def _largest_cost(costs: Iterable[Cost]) -> Cost:
    return max(costs, key=lambda cost: cost.amount, default=Cost(0.0, DEFAULT_CURRENCY))
