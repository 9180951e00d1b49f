"""What the reconciler's steps work with: the services, the rules, and writes that decide by the record."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Protocol

import structlog
from msgspec import Struct, field

from bus.port import Bus, BusError, Conflict, Entry
from edge.services.assets import Assets
from edge.services.clock import Clock, micros
from edge.services.fenced import fenced
from edge.services.hosts import HostWatch
from edge.services.index import Index
from edge.services.supply import Supply
from edge.services.window import Window
from edge.store.port import StoreError
from schemas.errors import Refused
from schemas.events import Event, RecordUnreadable
from schemas.job import Job, JobKey
from schemas.lifecycle import IllegalTransition, step

# What a step may meet: it is put off as a whole. Anything else is a bug that one job brings out.
WEATHER = (BusError, StoreError, Refused, RecordUnreadable, IllegalTransition)

SOME = 500  # jobs that a step looks at in one sweep

_log = structlog.get_logger()


class Rules(Struct, frozen=True):
    """How long what may wait."""

    gone_for: timedelta = timedelta(minutes=10)  # then a host has lost its jobs; its driver may say so sooner
    low_max_wait: timedelta = timedelta(hours=12)
    retention: timedelta = timedelta(days=30)
    check_every: timedelta = timedelta(hours=1)


class Powered(Protocol):
    """What a host's driver knows."""

    async def is_off(self, host: str) -> bool | None:
        """Whether the host is without power; None: nobody can tell."""
        ...


class NoDriver(Powered):
    """Nobody can tell."""

    async def is_off(self, host: str) -> bool | None:
        return None


class Hourly:
    """Says once in `every` that it is time, the first time after one `every`."""

    def __init__(self, every: timedelta, started: datetime) -> None:
        self._every = every
        self._last = started

    def due(self, now: datetime) -> bool:
        """Whether it is time; if so, the next time is one `every` later. So it is behind a clock set back."""
        time = not timedelta(0) <= now - self._last < self._every
        if time:
            self._last = now
        return time


class Scene(Struct, frozen=True, kw_only=True):
    """The services a step may use."""

    bus: Bus
    index: Index
    window: Window
    hosts: HostWatch
    assets: Assets
    supply: Supply
    now: Clock
    hourly: Hourly
    orphans: Hourly
    power: Powered = field(default_factory=NoDriver)
    rules: Rules = Rules()

    async def find(self, condition: str, ago: timedelta = timedelta(0), limit: int = SOME) -> Sequence[Entry]:
        """Up to `limit` jobs for which a condition of `index_sql` holds at `ago` before now."""
        return await self.index.matching(condition, micros(self.now() - ago), limit)

    async def read(self, key: JobKey) -> Entry | None:
        """The record; None when there is none, or none that can be read."""
        try:
            return await self.bus.records.read(key)
        except RecordUnreadable as error:
            _log.error("record_unreadable", owner=key.owner, job_id=key.id, error=str(error))
            return None

    async def change_all(
        self,
        entries: Sequence[Entry],
        decide: Callable[[Job], Awaitable[Event | None]],
        then: Callable[[Job], Awaitable[object]],
    ) -> int:
        """Apply to every job what `decide` says for its record as it is now, then `then`; how many were changed."""
        changed = 0
        for key in (entry.recorded.job.key for entry in entries):
            with fenced("job_not_mended", *WEATHER, owner=key.owner, job_id=key.id):
                changed += await self._change(key, decide, then)
        return changed

    async def _change(
        self, key: JobKey, decide: Callable[[Job], Awaitable[Event | None]], then: Callable[[Job], Awaitable[object]]
    ) -> bool:
        entry = await self.read(key)
        event = None if entry is None else await decide(entry.recorded.job)
        if entry is None or event is None:
            return False
        recorded = step(entry.recorded.job, event, self.now())
        try:
            revision = await self.bus.records.update(key, recorded, entry.revision)
        except Conflict:
            return False  # somebody was faster; the next sweep looks again
        self.index.written(key.owner, revision)
        try:
            await then(recorded.job)
        except BusError as error:
            _log.warning("left_to_next_sweep", owner=key.owner, job_id=key.id, error=str(error))
        return True

    async def delete(self, entry: Entry) -> bool:
        """Remove the record, unless it has changed since."""
        try:
            await self.bus.records.delete(entry.recorded.job.key, entry.revision)
        except Conflict:
            return False
        return True

    async def withdraw(self, job: Job) -> None:
        """Take the job's message out of JOBS."""
        await self.bus.queue.withdraw(job.pointer)
