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

from bus.port import Bus, BusError, Conflict
from edge.outbound.download import DownloadFailed, download
from edge.outbound.settings import OutboundSettings
from edge.outbound.targets import UrlRefused
from edge.outbound.turns import Turns
from edge.services.assets import Assets
from edge.services.clock import Clock
from edge.services.leases import Leases
from edge.services.standing import input_due
from schemas.asset import declared_type
from schemas.errors import Refused
from schemas.events import Event, Failed, RecordUnreadable, Supplied
from schemas.failures import FAILURES
from schemas.job import Failure, Job, JobKey
from schemas.lifecycle import step
from schemas.words import Status

PAUSES_S = (2.0, 10.0, 30.0, 60.0)  # between tries, each up to half as long again
PASSING = {"unavailable", "store_full", "rate_limited"}  # refusals of our own store that pass by themselves

_log = structlog.get_logger()


class Chance(Struct, frozen=True):
    """`dice`: a number from 0 to 1; `pauses_s`: between tries."""

    dice: Callable[[], float]
    pauses_s: tuple[float, ...] = PAUSES_S


class Fetches:
    """`run` holds the tasks; a job is asked for with `want`, and left with `stop`."""

    def __init__(  # noqa: PLR0913, PLR0917 - the services it works with
        self,
        bus: Bus,
        assets: Assets,
        leases: Leases,
        client: httpx.AsyncClient,
        settings: OutboundSettings,
        clock: Clock,
        chance: Chance,
    ) -> None:
        self._bus = bus
        self._assets = assets
        self._leases = leases
        self._client = client
        self._settings = settings
        self._clock = clock
        self._chance = chance
        self._turns = Turns(settings.fetches, settings.fetches_of_owner)
        self._under_way: dict[JobKey, dict[str, CancelScope]] = {}
        self._tasks: TaskGroup | None = None

    async def run(self) -> None:
        """Hold what is under way, without end."""
        async with create_task_group() as self._tasks:
            await sleep_forever()

    def want(self, job: Job) -> None:
        """Fetch what `job` lacks, unless that is under way here."""
        known = self._under_way.setdefault(job.key, {})
        for url in dict.fromkeys(fetch.url for fetch in job.fetching):
            if url not in known and self._tasks is not None:
                known[url] = CancelScope()
                self._tasks.start_soon(self._fetch, job.key, url, known[url])

    def stop(self, key: JobKey) -> None:
        """The job wants nothing any more: it was cancelled, or has expired."""
        for scope in self._under_way.get(key, {}).values():
            scope.cancel()

    async def _fetch(self, key: JobKey, url: str, scope: CancelScope) -> None:
        try:
            with scope:
                async with self._turns.turn(key.owner), self._alone(key, url) as job:
                    if job is not None:
                        await self._record(key, url, await self._outcome(job, url))
        except (BusError, RecordUnreadable) as error:
            _log.warning("fetch_put_off", owner=key.owner, job_id=key.id, error=str(error))
        finally:
            known = self._under_way.get(key, {})
            known.pop(url, None)
            if not known:
                self._under_way.pop(key, None)

    @asynccontextmanager
    async def _alone(self, key: JobKey, url: str) -> AsyncIterator[Job | None]:
        """The job as it is, held for this edge; None when it lacks the URL no more, or another edge is at it."""
        async with self._leases.held(f"{key.owner}.{key.id}", url) as held:
            entry = await self._bus.records.read(key) if held else None
            job = None if entry is None else entry.recorded.job
            yield job if job is not None and _lacks(job, url) else None

    async def _outcome(self, job: Job, url: str) -> Event:
        """The file, or why it cannot be had."""
        due = input_due(job)
        left = timedelta.max if due is None else due - self._clock()
        limit_s = max(0.0, min(self._settings.fetch_timeout_s, left.total_seconds()))
        last = ""
        with move_on_after(limit_s):
            for pause in (*self._chance.pauses_s, None):
                try:
                    return Supplied(await self._file(job.owner, url), url)
                except UrlRefused as error:
                    return _failed(url, str(error))
                except DownloadFailed as error:
                    last = str(error)
                    if not error.passing or pause is None:
                        return _failed(url, last)
                except Refused as error:
                    last = error.detail
                    if error.code not in PASSING or pause is None:
                        return _failed(url, last, "input_too_large" if error.code == "body_too_large" else None)
                except BusError:
                    raise
                except Exception:  # the border to whatever strangers serve: see edge.services.fenced
                    _log.exception("fetch_broke", owner=job.owner, job_id=job.id)
                    return _failed(url, "the edge cannot take what is served there: its log says why")
                _log.info("fetch_again", owner=job.owner, job_id=job.id, error=last, after_s=pause)
                await sleep(pause * (1 + self._chance.dice() / 2))
        return _failed(url, f"it took longer than {limit_s:g} s{f'; at last {last}' if last else ''}")

    async def _file(self, owner: str, url: str) -> str:
        """The digest of the file, which is the owner's asset then."""
        async with download(self._client, url) as file:
            if file.length is not None and file.length > self._assets.limit:
                raise Refused("body_too_large", f"it has {file.length} bytes, {self._assets.limit} are allowed")
            kind = declared_type(file.media_type, file.name)
            _, sha256, _ = await self._assets.put(owner, file.chunks, None, file.name, kind)
            return sha256

    async def _record(self, key: JobKey, url: str, event: Event) -> None:
        """Write what became of it, unless the job wants it no more. The index tells `Supply`, which goes on."""
        while (entry := await self._bus.records.read(key)) is not None and _lacks(entry.recorded.job, url):
            try:
                await self._bus.records.update(key, step(entry.recorded.job, event, self._clock()), entry.revision)
            except Conflict:
                continue
            return


def _lacks(job: Job, url: str) -> bool:
    return job.status is Status.SCHEDULED and any(fetch.url == url for fetch in job.fetching)


def _failed(url: str, why: str, code: str | None = None) -> Failed:
    named = code or "input_fetch_failed"
    return Failed(Failure(named, f"{url[:200]}: {why[:400]}", FAILURES[named].blame, retryable=False))
