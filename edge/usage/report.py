"""The report of what was used in a range of time, for one owner or for all: made of USAGE's rows when asked for."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta

from bus.interface import UsageLog
from edge.core.clock import Clock
from edge.core.validation import input_invalid_problem
from edge.usage.cost_allocation import HOUR_S, RUNNER_CURRENCY, CostAllocation, JobShare, TimeRange, allocate_costs
from edge.usage.recorder import power_usage
from schemas.host_config import PowerPrice
from schemas.power import HISTORY_LIMIT, OnInterval, PowerRecord
from schemas.problems import FieldError
from schemas.usage import Cost, EndpointUsage, PowerUsage, UsageReport

DEFAULT_RANGE = timedelta(days=30)
EARLIEST_START = datetime(1970, 1, 1, tzinfo=UTC)  # nothing is older, and calendars end a little before the year 1
STORAGE_DELAY_LIMIT = timedelta(hours=1)  # a row is stored after what it tells has ended, give or take the clocks


class UsageReports:
    """`records`: the power records of the declared hosts; `prices`: what they cost, where their owner says so."""

    def __init__(
        self,
        ledger: UsageLog,
        records: Callable[[], Mapping[str, PowerRecord]],
        prices: Mapping[str, PowerPrice | None],
        now: Clock,
    ) -> None:
        self._usage_log = ledger
        self._power_records = records
        self._prices = prices
        self._now = now

    async def report(
        self, owner: str | None, since: datetime | None = None, until: datetime | None = None
    ) -> UsageReport:
        """Of `owner`, or of everybody for None. Without `since` the last 30 days, without `until` up to now.

        Raises Refused `input_invalid`, BusError.
        """
        within = self._report_range(since, until)
        jobs = await self._usage_log.job_rows(within.since - STORAGE_DELAY_LIMIT)
        whole = allocate_costs(jobs, await self._on_intervals(within), within)
        saved_s = sum(self._off_s(host, record, whole, within) for host, record in self._power_records().items())
        if owner is None:
            return _build_report(None, within, whole, saved_s)
        mine = _owner_allocation(owner, whole)
        mine_s, shared_s = sum(mine.on_s.values()), sum(part.on_s for part in whole.shares)
        return _build_report(owner, within, mine, saved_s * mine_s / shared_s if shared_s else 0.0)

    def _report_range(self, since: datetime | None, until: datetime | None) -> TimeRange:
        now = self._now()
        end = now if until is None else min(max(until, EARLIEST_START), now)
        start = end - DEFAULT_RANGE if since is None else max(since, EARLIEST_START)
        if start >= end:
            raise input_invalid_problem(FieldError("from", "must be before `to`, and in the past"))
        return TimeRange(start, end)

    async def _on_intervals(self, within: TimeRange) -> list[PowerUsage]:
        """Those written down, and of each host those that are not yet: the last ones, and the one that still lasts."""
        spans = {
            (span.host, span.since): span
            for span in await self._usage_log.power_rows(within.since - STORAGE_DELAY_LIMIT)
        }
        for host, record in self._power_records().items():
            lasts = [OnInterval(record.on_since, self._now(), record.on_reason)] if record.on_since else []
            for span in (*record.on_intervals, *lasts):
                spans.setdefault((host, span.since), power_usage(host, span, self._prices.get(host)))
        return [span for span in spans.values() if within.overlap_s(span.since, span.until)]

    def _off_s(self, host: str, record: PowerRecord, whole: CostAllocation, within: TimeRange) -> float:
        """Seconds of the range, from when the host was declared, in which it had no power."""
        rolled = len(record.history) >= HISTORY_LIMIT
        known = within.since if rolled else min([record.since, *(change.at for change in record.history[:1])])
        return max(0.0, within.overlap_s(known, within.until) - whole.on_s.get(host, 0.0))


def _owner_allocation(owner: str, whole: CostAllocation) -> CostAllocation:
    """The owner's part of everything."""
    parts = tuple(part for part in whole.shares if part.job.owner == owner)
    on_s: defaultdict[str, float] = defaultdict(float)
    for part in parts:
        on_s[part.job.host or ""] += part.on_s
    return CostAllocation(parts, on_s, _costs_by_currency(parts))


def _build_report(owner: str | None, within: TimeRange, whole: CostAllocation, saved_s: float) -> UsageReport:
    by: defaultdict[str, list[JobShare]] = defaultdict(list)
    for part in whole.shares:
        by[part.job.endpoint].append(part)
    shares = tuple(_endpoint_usage(endpoint, by[endpoint]) for endpoint in sorted(by))
    money = tuple(Cost(amount, currency) for currency, amount in sorted(whole.costs.items(), key=lambda one: -one[1]))
    return UsageReport(
        since=within.since,
        until=within.until,
        owner=owner,
        jobs=sum(share.jobs for share in shares),
        gpu_s=sum(share.gpu_s for share in shares),
        energy_j=sum(share.energy_j for share in shares),
        cost=_largest_cost(money),
        costs=money,
        hours_on=sum(whole.on_s.values()) / HOUR_S,
        hours_saved=saved_s / HOUR_S,
        by_endpoint=shares,
    )


def _endpoint_usage(endpoint: str, parts: list[JobShare]) -> EndpointUsage:
    money = [Cost(amount, currency) for currency, amount in _costs_by_currency(parts).items()]
    return EndpointUsage(
        endpoint=endpoint,
        jobs=len(parts),
        gpu_s=sum(part.job.run_s * part.job.gpus for part in parts),
        energy_j=sum(part.job.energy_j or 0.0 for part in parts),
        cost=_largest_cost(money),
        hours_on=sum(part.on_s for part in parts) / HOUR_S,
    )


def _costs_by_currency(parts: Iterable[JobShare]) -> Mapping[str, float]:
    costs: defaultdict[str, float] = defaultdict(float)
    for part in parts:
        if part.cost:
            costs[part.currency] += part.cost
    return costs


def _largest_cost(money: Iterable[Cost]) -> Cost:
    return max(money, key=lambda cost: cost.amount, default=Cost(0.0, RUNNER_CURRENCY))
