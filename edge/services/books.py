"""Writes down what was used: one row for each round of a job that ends, one for each span with power of a host.

Both come from what is durable anyway, so that no crash loses a row. Jobs: the index reads all records at the start and
every change after, in STATE's order, and rows are written in that order; where the last edge came to is the last row's
revision. Spans: a host's power record keeps its last ones, and each look offers them all again. A row has a subject of
its own in USAGE: several edges, or a second life, write it once.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import structlog
from anyio import Event, create_task_group, sleep

from bus.ledger import Ledger
from bus.port import BusError, Change
from edge.services.index import Index
from schemas.job import Job
from schemas.power import Lit, PowerRecord
from schemas.switch import Price
from schemas.usage import JobUse, PowerUse
from schemas.words import FINAL

AGAIN_S = 5.0  # a broker that is away, or full, is asked again
LOOK_S = 15.0  # how often the hosts' spans are looked at

_log = structlog.get_logger()

Records = Callable[[], Mapping[str, PowerRecord]]
"""The power records of the declared hosts, as last read."""


class Books:
    """`written` is the revision up to which the jobs that ended have their rows."""

    def __init__(self, ledger: Ledger, index: Index, records: Records, prices: Mapping[str, Price | None]) -> None:
        self._ledger = ledger
        self._records = records
        self._prices = prices
        self._waiting: deque[JobUse] = deque()
        self._spans: set[tuple[str, Lit]] = set()
        self._woken = Event()
        self.written = 0
        index.tap(self._see)

    async def open(self) -> None:
        """Find out where the last edge came to; before the index runs. Raises BusError."""
        last = await self._ledger.last()
        self.written = last.revision if last else 0

    async def run(self) -> None:
        """Without end."""
        async with create_task_group() as tasks:
            tasks.start_soon(self._watch_hosts)
            while True:
                await self._woken.wait()
                self._woken = Event()
                await self.write()

    async def write(self) -> None:
        """Everything that waits, in its order; what cannot be written now is, before anything behind it."""
        while self._waiting:
            await self._insist(self._waiting[0])
            self.written = self._waiting.popleft().revision

    async def write_spans(self) -> None:
        """The spans of all hosts that this life has not written yet."""
        there = {(host, span) for host, record in self._records().items() for span in record.spans}
        for host, span in sorted(there - self._spans, key=lambda placed: placed[1].until):
            await self._insist(span_use(host, span, self._prices.get(host)))
        self._spans = there

    async def _watch_hosts(self) -> None:
        while True:
            await self.write_spans()
            await sleep(LOOK_S)

    async def _insist(self, row: JobUse | PowerUse) -> None:
        while True:
            try:
                await self._ledger.put(row)
            except BusError as error:
                _log.warning("usage_put_off", error=str(error))
                await sleep(AGAIN_S)
            else:
                return

    def _see(self, changes: Sequence[Change]) -> None:
        for change in changes:
            job = None if change.recorded is None else change.recorded.job
            if job is not None and job.status in FINAL and change.revision > self.written:
                self._waiting.append(use_of(job, change.revision))
        if self._waiting:
            self._woken.set()


def use_of(job: Job, revision: int) -> JobUse:
    """The row of a job that has ended."""
    return JobUse(
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
        gpus=len(job.claim.gpus) if job.claim else 0,
        energy_j=job.usage.gpu_energy_j,
        cost=job.usage.cost,
    )


def span_use(host: str, span: Lit, price: Price | None) -> PowerUse:
    """The row of a span with power, at today's price."""
    per_hour, currency = (price.hour, price.currency) if price else (None, "")
    return PowerUse(host=host, since=span.since, until=span.until, why=span.why, per_hour=per_hour, currency=currency)
