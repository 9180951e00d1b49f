"""Jobs whose input is not complete: note each file that arrives in the jobs that wait for it, queue complete jobs.

If the edge stops in between, the work is continued by every edge that starts and by the reconciler.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Sequence

import structlog
from anyio import create_task_group

from bus.compare_and_set import transition
from bus.interface import BusError, JobStore
from bus.notifier import Notifier
from edge.assets.service import AssetService
from edge.core.clock import Clock, micros
from edge.core.error_handling import log_and_continue
from edge.index import sqlite as sql
from edge.index.index import JobIndex
from edge.index.row import RowChange
from edge.jobs.publish_window import PublishWindow
from edge.jobs.url_inputs import UrlInputFetcher
from schemas.events import InputArrived, JobEvent, Queued, RecordUnreadable
from schemas.ids import JobKey
from schemas.job import Job
from schemas.status import Status

_JOB_LIMIT = 1_000_000
_CONCURRENCY_LIMIT = 16

_log = structlog.get_logger()


class InputWaiter:
    """Checks each job that begins to wait for input, whichever edge accepted it, and each job that an upload is for."""

    def __init__(  # noqa: PLR0913 - the services that it calls
        self,
        *,
        records: JobStore,
        assets: AssetService,
        url_fetcher: UrlInputFetcher,
        index: JobIndex,
        publish_window: PublishWindow,
        clock: Clock,
    ) -> None:
        self._records = records
        self._assets = assets
        self._url_fetcher = url_fetcher
        self._index = index
        self._publish_window = publish_window
        self._clock = clock
        self._jobs_by_asset: defaultdict[tuple[str, str], set[JobKey]] = defaultdict(set)  # by owner and digest
        self._missing_by_job: dict[JobKey, tuple[str, ...]] = {}
        self._scheduled_checks: OrderedDict[JobKey, None] = OrderedDict()  # a dict is slow at removing its first key
        self._check_scheduled = Notifier()
        index.subscribe_changes(self._on_row_changes)
        assets.subscribe_uploads(self._on_upload)

    async def run(self) -> None:
        """Wait until the index has caught up, then check jobs until cancelled."""
        await self._index.wait_until_caught_up()
        for key in await self._index.find_keys(sql.AWAITING_INPUT, micros(self._clock()), _JOB_LIMIT):
            self._schedule_check(key)
        while True:
            await self._check_scheduled.wait_until(lambda: bool(self._scheduled_checks))
            batch = [
                self._scheduled_checks.popitem(last=False)[0]
                for _ in range(min(_CONCURRENCY_LIMIT, len(self._scheduled_checks)))
            ]
            async with create_task_group() as tasks:
                for key in batch:
                    tasks.start_soon(self._check_job, key)

    def _on_row_changes(self, changes: Sequence[RowChange]) -> None:
        if not self._index.is_caught_up:  # `run` checks all jobs after the rebuild of the index
            return
        for before, after in changes:
            if after is not None and after.status is Status.SCHEDULED:
                self._schedule_check(after.key)
            elif before is not None and before.status is Status.SCHEDULED:
                self._untrack(before.key)
                self._url_fetcher.cancel_fetches(before.key)

    def _on_upload(self, owner: str, sha256: str) -> None:
        for key in self._jobs_by_asset.get((owner, sha256), ()):
            self._schedule_check(key)

    def _schedule_check(self, key: JobKey) -> None:
        self._scheduled_checks[key] = None
        self._check_scheduled.notify()

    async def _check_job(self, key: JobKey) -> None:
        with log_and_continue("input_check_crashed", owner=key.owner, job_id=key.id):
            try:
                await self.queue_if_complete(key)
            except (BusError, RecordUnreadable) as error:
                _log.warning("input_check_failed", owner=key.owner, job_id=key.id, error=str(error))

    async def queue_if_complete(self, key: JobKey) -> bool:
        """Record the files that have arrived for the job, and queue it if its input is complete.

        Returns whether anything was written. Raises BusError, RecordUnreadable.
        """
        is_written = False
        while True:
            result = await transition(self._records, key, self._decide, lambda _: self._clock())
            if not result.is_written or result.entry is None:
                break
            is_written = True
            self._index.record_own_write(key.owner, result.entry.revision)
            self._publish_window.publish_soon(result.entry.record.job)
        if result.entry is None:
            self._untrack(key)
        elif result.entry.record.job.status is Status.SCHEDULED:
            self._url_fetcher.start_fetches(result.entry.record.job)
        return is_written

    async def _decide(self, job: Job) -> JobEvent | None:
        # Track first: an upload that ends after the check below then starts another check.
        self._track_missing(job)
        return await self._next_event(job)

    async def _next_event(self, job: Job) -> JobEvent | None:
        """Return the next event to write for the job, None if it must wait."""
        if job.status is not Status.SCHEDULED:
            return None
        if job.missing:
            still_missing = await self._assets.find_missing(job.owner, job.missing)
            arrived = next((digest for digest in job.missing if digest not in still_missing), None)
            if arrived is not None:
                return InputArrived(arrived)
        is_early = job.not_before is not None and job.not_before > self._clock()
        return None if job.lacks_input or is_early else Queued()

    def _track_missing(self, job: Job) -> None:
        self._untrack(job.key)
        if job.status is Status.SCHEDULED and job.missing:
            self._missing_by_job[job.key] = job.missing
            for digest in job.missing:
                self._jobs_by_asset[job.owner, digest].add(job.key)

    def _untrack(self, key: JobKey) -> None:
        for digest in self._missing_by_job.pop(key, ()):
            waiting = self._jobs_by_asset[key.owner, digest]
            waiting.discard(key)
            if not waiting:
                del self._jobs_by_asset[key.owner, digest]
