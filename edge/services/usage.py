"""The report of what was used in a range of time, for one owner or for all: made of USAGE's rows when asked for."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta

from bus.ledger import Ledger
from edge.services.books import span_use
from edge.services.clock import Clock
from edge.services.inputs import invalid
from edge.services.shares import HOUR_S, RUNNERS_CURRENCY, Part, Range, Whole, share_out
from schemas.errors import FieldError
from schemas.power import HISTORY, Lit, PowerRecord
from schemas.switch import Price
from schemas.usage import Cost, PowerUse, Share, UsageReport

USUAL = timedelta(days=30)
FIRST = datetime(1970, 1, 1, tzinfo=UTC)  # nothing is older, and calendars end a little before the year 1
SKEW = timedelta(hours=1)  # a row is stored after what it tells has ended, give or take the clocks


class Accounts:
    """`records`: the power records of the declared hosts; `prices`: what they cost, where their owner says so."""

    def __init__(
        self,
        ledger: Ledger,
        records: Callable[[], Mapping[str, PowerRecord]],
        prices: Mapping[str, Price | None],
        now: Clock,
    ) -> None:
        self._ledger = ledger
        self._records = records
        self._prices = prices
        self._now = now

    async def report(
        self, owner: str | None, since: datetime | None = None, until: datetime | None = None
    ) -> UsageReport:
        """Of `owner`, or of everybody for None. Without `since` the last 30 days, without `until` up to now.

        Raises Refused `input_invalid`, BusError.
        """
        within = self._range(since, until)
        jobs = await self._ledger.jobs(within.since - SKEW)
        whole = share_out(jobs, await self._spans(within), within)
        saved_s = sum(self._dark_s(host, record, whole, within) for host, record in self._records().items())
        if owner is None:
            return _report(None, within, whole, saved_s)
        mine = _of(owner, whole)
        mine_s, shared_s = sum(mine.on_s.values()), sum(part.on_s for part in whole.parts)
        return _report(owner, within, mine, saved_s * mine_s / shared_s if shared_s else 0.0)

    def _range(self, since: datetime | None, until: datetime | None) -> Range:
        now = self._now()
        end = now if until is None else min(max(until, FIRST), now)
        start = end - USUAL if since is None else max(since, FIRST)
        if start >= end:
            raise invalid(FieldError("from", "must be before `to`, and in the past"))
        return Range(start, end)

    async def _spans(self, within: Range) -> list[PowerUse]:
        """Those written down, and of each host those that are not yet: the last ones, and the one that still lasts."""
        spans = {(span.host, span.since): span for span in await self._ledger.spans(within.since - SKEW)}
        for host, record in self._records().items():
            lasts = [Lit(record.lit_since, self._now(), record.lit_why)] if record.lit_since else []
            for span in (*record.spans, *lasts):
                spans.setdefault((host, span.since), span_use(host, span, self._prices.get(host)))
        return [span for span in spans.values() if within.cut_s(span.since, span.until)]

    def _dark_s(self, host: str, record: PowerRecord, whole: Whole, within: Range) -> float:
        """Seconds of the range, from when the host was declared, in which it had no power."""
        rolled = len(record.history) >= HISTORY
        known = within.since if rolled else min([record.since, *(change.at for change in record.history[:1])])
        return max(0.0, within.cut_s(known, within.until) - whole.on_s.get(host, 0.0))


def _of(owner: str, whole: Whole) -> Whole:
    """The owner's part of everything."""
    parts = tuple(part for part in whole.parts if part.job.owner == owner)
    on_s: defaultdict[str, float] = defaultdict(float)
    for part in parts:
        on_s[part.job.host or ""] += part.on_s
    return Whole(parts, on_s, _costs(parts))


def _report(owner: str | None, within: Range, whole: Whole, saved_s: float) -> UsageReport:
    by: defaultdict[str, list[Part]] = defaultdict(list)
    for part in whole.parts:
        by[part.job.endpoint].append(part)
    shares = tuple(_share(endpoint, by[endpoint]) for endpoint in sorted(by))
    money = tuple(Cost(amount, currency) for currency, amount in sorted(whole.costs.items(), key=lambda one: -one[1]))
    return UsageReport(
        since=within.since,
        until=within.until,
        owner=owner,
        jobs=sum(share.jobs for share in shares),
        gpu_s=sum(share.gpu_s for share in shares),
        energy_j=sum(share.energy_j for share in shares),
        cost=_foremost(money),
        costs=money,
        hours_on=sum(whole.on_s.values()) / HOUR_S,
        hours_saved=saved_s / HOUR_S,
        by=shares,
    )


def _share(endpoint: str, parts: list[Part]) -> Share:
    money = [Cost(amount, currency) for currency, amount in _costs(parts).items()]
    return Share(
        endpoint=endpoint,
        jobs=len(parts),
        gpu_s=sum(part.job.run_s * part.job.gpus for part in parts),
        energy_j=sum(part.job.energy_j or 0.0 for part in parts),
        cost=_foremost(money),
        hours_on=sum(part.on_s for part in parts) / HOUR_S,
    )


def _costs(parts: Iterable[Part]) -> Mapping[str, float]:
    costs: defaultdict[str, float] = defaultdict(float)
    for part in parts:
        if part.money:
            costs[part.currency] += part.money
    return costs


def _foremost(money: Iterable[Cost]) -> Cost:
    return max(money, key=lambda cost: cost.amount, default=Cost(0.0, RUNNERS_CURRENCY))
