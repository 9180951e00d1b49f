"""What a job's submit was called: the `request_id` and `trace_id` that every push about it carries."""

from collections import OrderedDict
from datetime import datetime
from typing import NamedTuple

from msgspec import Struct

from bus.interface import BusError, JobStore
from edge.core.clock import Clock
from edge.http.dependencies import EdgeServices
from schemas.events import RecordUnreadable
from schemas.ids import JobKey
from schemas.job import Job
from schemas.job_view import JobView

CACHE_LIMIT = 20_000  # jobs; the one heard of longest ago is looked up again


class SubmitMetadata(NamedTuple):
    """`made`: when the job was, since an id may come again after a deletion."""

    request_id: str = ""
    trace_id: str = ""
    endpoint: str = ""
    created_at: datetime | None = None


class SubmitMetadataCache:
    """Read from the record once, then remembered: it never changes while the job lives."""

    def __init__(self, records: JobStore) -> None:
        self._records = records
        self._cache: OrderedDict[JobKey, SubmitMetadata] = OrderedDict()

    def store(self, job: Job) -> SubmitMetadata:
        """Remember `job`."""
        origin = SubmitMetadata(job.request_id, job.trace_id, job.endpoint, job.created_at)
        self._cache[job.key] = origin
        self._cache.move_to_end(job.key)
        if len(self._cache) > CACHE_LIMIT:
            self._cache.popitem(last=False)
        return origin

    async def for_view(self, view: JobView) -> SubmitMetadata:
        """The origin of the job that is shown."""
        key = JobKey(view.owner, view.id)
        known = self._cache.get(key)
        return known if known is not None and known.created_at == view.created_at else await self._load(key)

    async def for_job(self, key: JobKey) -> SubmitMetadata:
        """The origin of a job that says how far it is."""
        return self._cache.get(key) or await self._load(key)

    async def _load(self, key: JobKey) -> SubmitMetadata:
        """Empty for a job that is gone, or cannot be read now: a push without its name is better than none."""
        try:
            entry = await self._records.read(key)
        except (BusError, RecordUnreadable):
            return SubmitMetadata()
        return SubmitMetadata() if entry is None else self.store(entry.record.job)


# MERGED edge/facades/gateway/hall.py: What all sockets of this edge share besides its services.


class CommandContext(Struct, frozen=True):
    """Given to every command."""

    services: EdgeServices
    submit_metadata: SubmitMetadataCache
    now: Clock
