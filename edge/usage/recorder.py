"""Usage recorder: write one row for each ended round of a job, and one for each on-interval of a host.

Both are derived from durable data, so that no crash loses a row.
- Jobs: the index reads all records at start, then every change in the order of STATE. Rows are written in this order.
  The revision of the last row tells where the previous process stopped.
- On-intervals: the power record of a host keeps the latest ones, and each poll offers all of them again.
Each row has its own subject in USAGE, so several edges, or a restarted one, write it once.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import structlog
from anyio import create_task_group, sleep

from bus.interface import BusError, RecordChange, UsageLog
from bus.notifier import Notifier
from edge.index.index import JobIndex
from schemas.host_config import PowerPrice
from schemas.job import Job
from schemas.power import OnInterval, PowerRecord
from schemas.status import FINAL_STATUSES
from schemas.usage import JobUsage, PowerUsage

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
