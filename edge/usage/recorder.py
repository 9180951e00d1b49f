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

from bus.interface import BusError, RecordChange, UsageLog
from edge.index.index import JobIndex
from schemas.host_config import PowerPrice
from schemas.job import Job
from schemas.power import OnInterval, PowerRecord
from schemas.status import FINAL_STATUSES
from schemas.usage import JobUsage, PowerUsage

RETRY_DELAY_S = 5.0  # a broker that is away, or full, is asked again
POLL_INTERVAL_S = 15.0  # how often the hosts' spans are looked at

_log = structlog.get_logger()

PowerRecords = Callable[[], Mapping[str, PowerRecord]]
"""The power records of the declared hosts, as last read."""


class UsageRecorder:
    """`written` is the revision up to which the jobs that ended have their rows."""

    def __init__(
        self, ledger: UsageLog, index: JobIndex, records: PowerRecords, prices: Mapping[str, PowerPrice | None]
    ) -> None:
        self._usage_log = ledger
        self._power_records = records
        self._prices = prices
        self._pending: deque[JobUsage] = deque()
        self._written_intervals: set[tuple[str, OnInterval]] = set()
        self._work_available = Event()
        self.written_revision = 0
        index.subscribe_records(self._on_record_changes)

    async def load_position(self) -> None:
        """Find out where the last edge came to; before the index runs. Raises BusError."""
        last = await self._usage_log.last_job_row()
        self.written_revision = last.revision if last else 0

    async def run(self) -> None:
        """Without end."""
        async with create_task_group() as tasks:
            tasks.start_soon(self._record_hosts_forever)
            while True:
                await self._work_available.wait()
                self._work_available = Event()
                await self.write_pending()

    async def write_pending(self) -> None:
        """Everything that waits, in its order; what cannot be written now is, before anything behind it."""
        while self._pending:
            await self._write_with_retry(self._pending[0])
            self.written_revision = self._pending.popleft().revision

    async def write_on_intervals(self) -> None:
        """The spans of all hosts that this life has not written yet."""
        there = {(host, span) for host, record in self._power_records().items() for span in record.on_intervals}
        for host, span in sorted(there - self._written_intervals, key=lambda placed: placed[1].until):
            await self._write_with_retry(power_usage(host, span, self._prices.get(host)))
        self._written_intervals = there

    async def _record_hosts_forever(self) -> None:
        while True:
            await self.write_on_intervals()
            await sleep(POLL_INTERVAL_S)

    async def _write_with_retry(self, row: JobUsage | PowerUsage) -> None:
        while True:
            try:
                await self._usage_log.add(row)
            except BusError as error:
                _log.warning("usage_put_off", error=str(error))
                await sleep(RETRY_DELAY_S)
            else:
                return

    def _on_record_changes(self, changes: Sequence[RecordChange]) -> None:
        for change in changes:
            job = None if change.record is None else change.record.job
            if job is not None and job.status in FINAL_STATUSES and change.revision > self.written_revision:
                self._pending.append(job_usage(job, change.revision))
        if self._pending:
            self._work_available.set()


def job_usage(job: Job, revision: int) -> JobUsage:
    """The row of a job that has ended."""
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


def power_usage(host: str, span: OnInterval, price: PowerPrice | None) -> PowerUsage:
    """The row of a span with power, at today's price."""
    per_hour, currency = (price.hourly_cost, price.currency) if price else (None, "")
    return PowerUsage(
        host=host, since=span.since, until=span.until, on_reason=span.why, per_hour=per_hour, currency=currency
    )
