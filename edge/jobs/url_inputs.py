"""Inputs given as URLs: fetched into the owner's assets after the job was accepted, by one edge at a time.

Nothing of it is kept but what the record says: which URLs are still lacking. An edge that dies leaves a lease that runs
out, and whoever looks at the job next fetches anew.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import httpx
import structlog
from anyio import CancelScope, create_task_group, move_on_after, sleep, sleep_forever
from anyio.abc import TaskGroup
from msgspec import Struct

from bus.interface import Bus, BusError, RevisionConflict
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
from schemas.lifecycle import next_record
from schemas.problems import ProblemError
from schemas.retry_policy import make_job_failure
from schemas.status import Status

FETCH_BACKOFF_S = (2.0, 10.0, 30.0, 60.0)  # between tries, each up to half as long again
TRANSIENT_CODES = {"unavailable", "store_full", "rate_limited"}  # refusals of our own store that pass by themselves

_log = structlog.get_logger()


class FetchBackoff(Struct, frozen=True):
    """`dice`: a number from 0 to 1; `pauses_s`: between tries."""

    random: Callable[[], float]
    delays_s: tuple[float, ...] = FETCH_BACKOFF_S


class UrlInputFetcher:
    """`run` holds the tasks; a job is asked for with `want`, and left with `stop`."""

    def __init__(  # noqa: PLR0913, PLR0917 - the services it works with
        self,
        bus: Bus,
        assets: AssetService,
        leases: Leases,
        client: httpx.AsyncClient,
        settings: OutboundSettings,
        clock: Clock,
        chance: FetchBackoff,
    ) -> None:
        self._bus = bus
        self._assets = assets
        self._leases = leases
        self._client = client
        self._settings = settings
        self._clock = clock
        self._backoff = chance
        self._owner_limiter = PerOwnerLimiter(settings.fetches, settings.fetches_of_owner)
        self._active_fetches: dict[JobKey, dict[str, CancelScope]] = {}
        self._tasks: TaskGroup | None = None

    async def run(self) -> None:
        """Hold what is under way, without end."""
        async with create_task_group() as self._tasks:
            await sleep_forever()

    def start_fetches(self, job: Job) -> None:
        """Fetch what `job` lacks, unless that is under way here."""
        known = self._active_fetches.setdefault(job.key, {})
        for url in dict.fromkeys(fetch.url for fetch in job.pending_urls):
            if url not in known and self._tasks is not None:
                known[url] = CancelScope()
                self._tasks.start_soon(self._fetch, job.key, url, known[url])

    def cancel_fetches(self, key: JobKey) -> None:
        """The job wants nothing any more: it was cancelled, or has expired."""
        for scope in self._active_fetches.get(key, {}).values():
            scope.cancel()

    async def _fetch(self, key: JobKey, url: str, scope: CancelScope) -> None:
        try:
            with scope:
                async with self._owner_limiter.slot(key.owner), self._claim_fetch(key, url) as job:
                    if job is not None:
                        await self._write_event(key, url, await self._fetch_event(job, url))
        except (BusError, RecordUnreadable) as error:
            _log.warning("fetch_put_off", owner=key.owner, job_id=key.id, error=str(error))
        finally:
            known = self._active_fetches.get(key, {})
            known.pop(url, None)
            if not known:
                self._active_fetches.pop(key, None)

    @asynccontextmanager
    async def _claim_fetch(self, key: JobKey, url: str) -> AsyncIterator[Job | None]:
        """The job as it is, held for this edge; None when it lacks the URL no more, or another edge is at it."""
        async with self._leases.acquire(f"{key.owner}.{key.id}", url) as held:
            entry = await self._bus.job_store.read(key) if held else None
            job = None if entry is None else entry.record.job
            yield job if job is not None and _is_missing_url(job, url) else None

    async def _fetch_event(self, job: Job, url: str) -> JobEvent:
        """The file, or why it cannot be had."""
        due = input_due_at(job)
        left = timedelta.max if due is None else due - self._clock()
        limit_s = max(0.0, min(self._settings.fetch_timeout_s, left.total_seconds()))
        last = ""
        with move_on_after(limit_s):
            for pause in (*self._backoff.delays_s, None):
                try:
                    return InputArrived(await self._download_asset(job.owner, url), url)
                except UrlRefused as error:
                    return _failed_event(url, str(error))
                except DownloadFailed as error:
                    last = str(error)
                    if not error.is_transient or pause is None:
                        return _failed_event(url, last)
                except ProblemError as error:
                    last = error.detail
                    if error.code not in TRANSIENT_CODES or pause is None:
                        return _failed_event(url, last, "input_too_large" if error.code == "body_too_large" else None)
                except BusError:
                    raise
                except Exception:  # the border to whatever strangers serve: see edge.core.error_handling
                    _log.exception("fetch_broke", owner=job.owner, job_id=job.id)
                    return _failed_event(url, "the edge cannot take what is served there: its log says why")
                _log.info("fetch_again", owner=job.owner, job_id=job.id, error=last, after_s=pause)
                await sleep(pause * (1 + self._backoff.random() / 2))
        return _failed_event(url, f"it took longer than {limit_s:g} s{f'; at last {last}' if last else ''}")

    async def _download_asset(self, owner: str, url: str) -> str:
        """The digest of the file, which is the owner's asset then."""
        async with download(self._client, url) as file:
            if file.length is not None and file.length > self._assets.limit:
                raise ProblemError("body_too_large", f"it has {file.length} bytes, {self._assets.limit} are allowed")
            kind = choose_media_type(file.media_type, file.name)
            _, sha256, _ = await self._assets.put(owner, file.chunks, None, file.name, kind)
            return sha256

    async def _write_event(self, key: JobKey, url: str, event: JobEvent) -> None:
        """Write what became of it, unless the job wants it no more. The index tells `Supply`, which goes on."""
        while (entry := await self._bus.job_store.read(key)) is not None and _is_missing_url(entry.record.job, url):
            try:
                await self._bus.job_store.update(
                    key, next_record(entry.record.job, event, self._clock()), entry.revision
                )
            except RevisionConflict:
                continue
            return


def _is_missing_url(job: Job, url: str) -> bool:
    return job.status is Status.SCHEDULED and any(fetch.url == url for fetch in job.pending_urls)


def _failed_event(url: str, why: str, code: str | None = None) -> Failed:
    named = code or "input_fetch_failed"
    return Failed(make_job_failure(named, f"{url[:200]}: {why[:400]}"))
