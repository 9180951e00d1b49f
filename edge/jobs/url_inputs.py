"""Inputs given as URLs: downloaded into the owner's assets after the job was accepted, by one edge at a time.

The record says which URLs are still missing; a download has no other state. The lease of an edge that dies expires,
and the next edge that checks the job downloads the file again.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import NamedTuple

import httpx2
import structlog
from anyio import CancelScope, create_task_group, move_on_after, sleep, sleep_forever
from anyio.abc import TaskGroup
from msgspec import Struct

from bus.compare_and_set import transition
from bus.interface import Bus, BusError
from edge.assets.service import AssetService
from edge.core.clock import Clock
from edge.core.leases import Leases
from edge.index.row import input_due_at
from edge.outbound.download import DownloadFailed, OutboundSettings, PerOwnerLimiter, download
from edge.outbound.url_policy import UrlRefused
from schemas.asset import choose_media_type
from schemas.events import Failed, InputArrived, JobEvent, RecordUnreadable
from schemas.ids import JobKey
from schemas.job import Job
from schemas.problems import ProblemError
from schemas.retry_policy import make_job_failure
from schemas.status import Status

FETCH_BACKOFF_S = (2.0, 10.0, 30.0, 60.0)  # between attempts; jitter makes each up to half as long again
INPUT_FETCH_FAILED = "input_fetch_failed"
TRANSIENT_CODES = {"unavailable", "store_full", "rate_limited"}  # problems of our own store that pass by themselves

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
            return _FetchFailure(problem.detail, problem.code in TRANSIENT_CODES, code)
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
