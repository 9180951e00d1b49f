"""Jobs whose input is not complete: each file that comes is told to the jobs that wait for it, the last queues them.

What is cut off in between is found again: by every edge when it starts, and by the reconciler.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Sequence

import structlog
from anyio import Event, create_task_group

from bus.port import BusError, Conflict, Entry, Records
from edge.services import index_sql as sql
from edge.services.assets import Assets
from edge.services.clock import Clock, micros
from edge.services.fenced import fenced
from edge.services.fetches import Fetches
from edge.services.index import Index
from edge.services.standing import Step
from edge.services.window import Window
from schemas.events import Event as Fact
from schemas.events import Queued, RecordUnreadable, Supplied
from schemas.job import Job, JobKey
from schemas.lifecycle import step
from schemas.words import Status

_ALL = 1_000_000
_AT_ONCE = 16

_log = structlog.get_logger()


class Supply:
    """`run` looks at every job that begins to wait for input, over any edge, and at each that an upload is for."""

    def __init__(  # noqa: PLR0913, PLR0917 - the services it works with
        self, records: Records, assets: Assets, fetches: Fetches, index: Index, window: Window, clock: Clock
    ) -> None:
        self._records = records
        self._assets = assets
        self._fetches = fetches
        self._index = index
        self._window = window
        self._clock = clock
        self._waiting: defaultdict[tuple[str, str], set[JobKey]] = defaultdict(set)  # by owner and digest
        self._wants: dict[JobKey, tuple[str, ...]] = {}
        self._due: OrderedDict[JobKey, None] = OrderedDict()  # a dict is slow to take the first of
        self._woken = Event()
        index.watch(self._see)
        assets.watch(self._uploaded)

    async def run(self) -> None:
        """Without end, from when the index has caught up."""
        await self._index.ready()
        for key in await self._index.keys_matching(sql.LACKING, micros(self._clock()), _ALL):
            self._look_at(key)
        while True:
            await self._woken.wait()
            self._woken = Event()
            while self._due:
                batch = [self._due.popitem(last=False)[0] for _ in range(min(_AT_ONCE, len(self._due)))]
                async with create_task_group() as tasks:
                    for key in batch:
                        tasks.start_soon(self._settle, key)

    def _see(self, steps: Sequence[Step]) -> None:
        """The index moved; what it reads while it is rebuilt is looked at in one go by `run`."""
        if not self._index.caught_up:
            return
        for before, after in steps:
            if after is not None and after.status is Status.SCHEDULED:
                self._look_at(after.key)
            elif before is not None and before.status is Status.SCHEDULED:
                self._forget(before.key)
                self._fetches.stop(before.key)

    def _uploaded(self, owner: str, sha256: str) -> None:
        for key in self._waiting.get((owner, sha256), ()):
            self._look_at(key)

    def _look_at(self, key: JobKey) -> None:
        self._due[key] = None
        self._woken.set()

    async def _settle(self, key: JobKey) -> None:
        with fenced("job_not_supplied", owner=key.owner, job_id=key.id):
            try:
                await self.settle(key)
            except (BusError, RecordUnreadable) as error:
                _log.warning("left_to_reconciler", owner=key.owner, job_id=key.id, error=str(error))

    async def settle(self, key: JobKey) -> bool:
        """Write what has come for the job, and queue it when nothing is lacking; whether anything was written.

        Raises BusError, RecordUnreadable.
        """
        written = False
        while (entry := await self._records.read(key)) is not None:
            job = entry.recorded.job
            self._remember(job)
            fact = await self._next(job)
            if fact is None:
                if job.status is Status.SCHEDULED:
                    self._fetches.want(job)
                break
            written = await self._write(entry, fact) or written
        else:
            self._forget(key)
        return written

    async def _next(self, job: Job) -> Fact | None:
        """What can be said of the job now, None: nothing."""
        if job.status is not Status.SCHEDULED:
            return None
        if job.missing:
            lacking = await self._assets.missing(job.owner, job.missing)
            arrived = next((digest for digest in job.missing if digest not in lacking), None)
            if arrived is not None:
                return Supplied(arrived)
        later = job.not_before is not None and job.not_before > self._clock()
        return None if job.lacks_input or later else Queued()

    async def _write(self, entry: Entry, fact: Fact) -> bool:
        recorded = step(entry.recorded.job, fact, self._clock())
        try:
            revision = await self._records.update(recorded.job.key, recorded, entry.revision)
        except Conflict:
            return False  # somebody was faster: `settle` reads again
        self._index.written(recorded.job.owner, revision)
        self._window.send(recorded.job)
        return True

    def _remember(self, job: Job) -> None:
        self._forget(job.key)
        if job.status is Status.SCHEDULED and job.missing:
            self._wants[job.key] = job.missing
            for digest in job.missing:
                self._waiting[job.owner, digest].add(job.key)

    def _forget(self, key: JobKey) -> None:
        for digest in self._wants.pop(key, ()):
            waiting = self._waiting[key.owner, digest]
            waiting.discard(key)
            if not waiting:
                del self._waiting[key.owner, digest]
