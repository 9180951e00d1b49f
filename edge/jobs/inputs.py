"""Inputs that are not complete when a job is accepted: files to be uploaded, and URLs that the edge downloads.

`InputWaiter` notes each file that arrives in the jobs that wait for it, and queues complete jobs. If the edge stops in
between, the work is continued by every edge that starts and by the reconciler.

`UrlInputFetcher` downloads into the owner's assets, one edge at a time. The record says which URLs are still missing;
a download has no other state. The lease of an edge that dies expires, and the next edge that checks the job downloads
the file again.
"""

from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import NamedTuple

import httpx2
import structlog
from anyio import CancelScope, create_task_group, move_on_after, sleep, sleep_forever
from anyio.abc import TaskGroup
from msgspec import Struct

from bus.compare_and_set import transition
from bus.interface import Bus, BusError, JobStore
from bus.notifier import Notifier
from edge.assets.service import AssetService
from edge.core.clock import Clock, micros
from edge.core.concurrency import log_and_continue
from edge.core.installation import Leases
from edge.index import sqlite as sql
from edge.index.index import JobIndex
from edge.index.rows import RowChange, input_due_at
from edge.jobs.publish_window import PublishWindow
from edge.outbound import DownloadFailed, OutboundSettings, PerOwnerLimiter, UrlRefused, download
from schemas.asset import choose_media_type
from schemas.events import Failed, InputArrived, JobEvent, Queued, RecordUnreadable
from schemas.job import Job, JobKey, Status
from schemas.lifecycle import make_job_failure
from schemas.problems import ProblemError

FETCH_BACKOFF_S = (2.0, 10.0, 30.0, 60.0)  # between attempts; jitter makes each up to half as long again
INPUT_FETCH_FAILED = "input_fetch_failed"
TRANSIENT_FETCH_CODES = {
    "unavailable",
    "store_full",
    "rate_limited",
}  # problems of our own store that pass by themselves

_log = structlog.get_logger()


class FetchBackoff(Struct, frozen=True):
    """The delays between attempts. `random` returns a number in [0, 1) for the jitter."""

    random: Callable[[], float]
    delays_s: tuple[float, ...] = FETCH_BACKOFF_S


class _FetchFailure(NamedTuple):
    """Why an attempt to download a file failed. `is_transient`: another attempt may succeed."""

    error: str
    is_transient: bool = False
    code: str = INPUT_FETCH_FAILED


class UrlInputFetcher:
    """Downloads the missing URLs of jobs: `start_fetches` and `cancel_fetches` per job, in tasks that `run` runs."""

    def __init__(  # noqa: PLR0913 - the services that it calls
        self,
        *,
        bus: Bus,
        assets: AssetService,
        leases: Leases,
        client: httpx2.AsyncClient,
        settings: OutboundSettings,
        clock: Clock,
        backoff: FetchBackoff,
    ) -> None:
        self._bus = bus
        self._assets = assets
        self._leases = leases
        self._client = client
        self._settings = settings
        self._clock = clock
        self._backoff = backoff
        self._owner_limiter = PerOwnerLimiter(settings.fetches, settings.fetches_of_owner)
        self._active_fetches: dict[JobKey, dict[str, CancelScope]] = {}
        self._tasks: TaskGroup | None = None

    async def run(self) -> None:
        """Run the downloads, until cancelled."""
        async with create_task_group() as self._tasks:
            await sleep_forever()

    def start_fetches(self, job: Job) -> None:
        """Start the download of each missing URL of `job` that is not already being downloaded here."""
        active = self._active_fetches.setdefault(job.key, {})
        for url in dict.fromkeys(pending.url for pending in job.pending_urls):
            if url not in active and self._tasks is not None:
                active[url] = CancelScope()
                self._tasks.start_soon(self._fetch, job.key, url, active[url])

    def cancel_fetches(self, key: JobKey) -> None:
        """Cancel the downloads of a job that was cancelled or has expired."""
        for scope in self._active_fetches.get(key, {}).values():
            scope.cancel()

    async def _fetch(self, key: JobKey, url: str, scope: CancelScope) -> None:
        try:
            with scope:
                async with self._owner_limiter.slot(key.owner), self._lease_fetch(key, url) as job:
                    if job is not None:
                        await self._write_event(key, url, await self._fetch_event(job, url))
        except (BusError, RecordUnreadable) as error:
            _log.warning("fetch_postponed", owner=key.owner, job_id=key.id, error=str(error))
        finally:
            active = self._active_fetches.get(key, {})
            active.pop(url, None)
            if not active:
                self._active_fetches.pop(key, None)

    @asynccontextmanager
    async def _lease_fetch(self, key: JobKey, url: str) -> AsyncIterator[Job | None]:
        """Acquire the lease of the URL and yield the job; None if another edge has it, or the URL is not missing."""
        async with self._leases.acquire(f"{key.owner}.{key.id}", url) as is_acquired:
            entry = await self._bus.job_store.read(key) if is_acquired else None
            job = None if entry is None else entry.record.job
            yield job if job is not None and _is_missing_url(job, url) else None

    async def _fetch_event(self, job: Job, url: str) -> JobEvent:
        """Download the file in one or more attempts; return the event with its digest, or with the failure."""
        due = input_due_at(job)
        left = timedelta.max if due is None else due - self._clock()
        limit_s = max(0.0, min(self._settings.fetch_timeout_s, left.total_seconds()))
        last_error = ""
        with move_on_after(limit_s):
            for delay_s in (*self._backoff.delays_s, None):
                result = await self._try_download(job, url)
                if isinstance(result, str):
                    return InputArrived(result, url)
                if delay_s is None or not result.is_transient:
                    return _failed_event(url, result.error, result.code)
                last_error = f"; last error: {result.error}"
                _log.info("fetch_retried", owner=job.owner, job_id=job.id, error=result.error, delay_s=delay_s)
                await sleep(delay_s * (1 + self._backoff.random() / 2))
        return _failed_event(url, f"it took longer than {limit_s:g} s{last_error}", INPUT_FETCH_FAILED)

    async def _try_download(self, job: Job, url: str) -> str | _FetchFailure:
        """Return the digest of the file, or why the attempt failed. Raises BusError."""
        try:
            return await self._download_asset(job.owner, url)
        except UrlRefused as error:
            return _FetchFailure(str(error))
        except DownloadFailed as error:
            return _FetchFailure(str(error), error.is_transient)
        except ProblemError as problem:
            code = "input_too_large" if problem.code == "body_too_large" else INPUT_FETCH_FAILED
            return _FetchFailure(problem.detail, problem.code in TRANSIENT_FETCH_CODES, code)
        except BusError:
            raise
        except Exception:  # a bug that the response brings out: it fails this job only
            _log.exception("fetch_crashed", owner=job.owner, job_id=job.id)
            return _FetchFailure("the edge cannot process the response: its log says why")

    async def _download_asset(self, owner: str, url: str) -> str:
        """Download the file into the owner's assets; return its digest."""
        async with download(self._client, url) as file:
            if file.length is not None and file.length > self._assets.limit:
                raise ProblemError("body_too_large", f"it has {file.length} bytes, {self._assets.limit} are allowed")
            media_type = choose_media_type(file.media_type, file.name)
            _, sha256, _ = await self._assets.put(owner, file.chunks, None, file.name, media_type)
            return sha256

    async def _write_event(self, key: JobKey, url: str, event: JobEvent) -> None:
        """Write the event if the URL is still missing. InputWaiter continues when the index has the record."""

        async def decide(job: Job) -> JobEvent | None:
            return event if _is_missing_url(job, url) else None

        await transition(self._bus.job_store, key, decide, lambda _: self._clock())


def _is_missing_url(job: Job, url: str) -> bool:
    return job.status is Status.SCHEDULED and any(pending.url == url for pending in job.pending_urls)


def _failed_event(url: str, error: str, code: str) -> Failed:
    return Failed(make_job_failure(code, f"{url[:200]}: {error[:400]}"))


_JOB_LIMIT = 1_000_000
_CONCURRENCY_LIMIT = 16


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
