"""State that all gateway sockets of one edge share: services, and a cache of the names of submits by job."""

from collections import OrderedDict
from datetime import datetime
from typing import NamedTuple

from msgspec import Struct

from bus.interface import BusError, JobStore
from edge.core.clock import Clock
from edge.http.dependencies import EdgeServices
from schemas.events import RecordUnreadable
from schemas.ids import JobKey, Token
from schemas.job import Job
from schemas.job_view import JobView

CACHE_LIMIT = 20_000  # jobs; the least recently used one is read again


class SubmitMetadata(NamedTuple):
    """The names of a submit, which every push about its job carries.

    `created_at`: when the job was created; a client may use an id again after a deletion.
    """

    request_id: str = ""
    trace_id: str = ""
    endpoint: str = ""
    created_at: datetime | None = None


class SubmitMetadataCache:
    """Caches the names of submits. They never change during the life of a job."""

    def __init__(self, records: JobStore) -> None:
        self._records = records
        self._cache: OrderedDict[JobKey, SubmitMetadata] = OrderedDict()

    def store(self, job: Job) -> SubmitMetadata:
        """Cache the names of `job` and return them."""
        metadata = SubmitMetadata(job.request_id, job.trace_id, job.endpoint, job.created_at)
        self._cache[job.key] = metadata
        self._cache.move_to_end(job.key)
        if len(self._cache) > CACHE_LIMIT:
            self._cache.popitem(last=False)
        return metadata

    async def for_view(self, view: JobView) -> SubmitMetadata:
        """Return the names for the job of `view`."""
        key = JobKey(view.owner, view.id)
        known = self._cache.get(key)
        return known if known is not None and known.created_at == view.created_at else await self._load(key)

    async def for_job(self, key: JobKey) -> SubmitMetadata:
        """Return the names for a job that reports progress."""
        return self._cache.get(key) or await self._load(key)

    async def _load(self, key: JobKey) -> SubmitMetadata:
        """Read the names. Empty names for a job that cannot be read: a push without them is better than no push."""
        try:
            entry = await self._records.read(key)
        except (BusError, RecordUnreadable):
            return SubmitMetadata()
        return SubmitMetadata() if entry is None else self.store(entry.record.job)


class CommandContext(Struct, frozen=True):
    """The arguments that every command shares. `heygem_endpoint`: the endpoint that `heygem_submit` stands for."""

    services: EdgeServices
    heygem_endpoint: Token
    submit_metadata: SubmitMetadataCache
    now: Clock
