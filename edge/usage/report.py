"""The usage report of a time range, for one owner or for all owners, built from the rows of USAGE on request."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta

from bus.interface import UsageLog
from edge.core.clock import HOUR_S, Clock
from edge.core.validation import input_invalid_problem
from edge.usage.cost_allocation import CostAllocation, JobShare, TimeRange, allocate_costs
from edge.usage.recorder import power_usage
from schemas.host_config import DEFAULT_CURRENCY, PowerPrice
from schemas.power import HISTORY_LIMIT, OnInterval, PowerRecord
from schemas.problems import FieldError
from schemas.usage import Cost, EndpointUsage, PowerUsage, UsageReport

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
