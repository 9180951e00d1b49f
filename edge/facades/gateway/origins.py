"""What a job's submit was called: the `request_id` and `trace_id` that every push about it carries."""

from collections import OrderedDict
from datetime import datetime
from typing import NamedTuple

from bus.port import BusError, Records
from schemas.events import RecordUnreadable
from schemas.job import Job, JobKey
from schemas.view import JobView

REMEMBERED = 20_000  # jobs; the one heard of longest ago is looked up again


class Origin(NamedTuple):
    """`made`: when the job was, since an id may come again after a deletion."""

    request_id: str = ""
    trace_id: str = ""
    endpoint: str = ""
    made: datetime | None = None


class Origins:
    """Read from the record once, then remembered: it never changes while the job lives."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._known: OrderedDict[JobKey, Origin] = OrderedDict()

    def learn(self, job: Job) -> Origin:
        """Remember `job`."""
        origin = Origin(job.request_id, job.trace_id, job.endpoint, job.created_at)
        self._known[job.key] = origin
        self._known.move_to_end(job.key)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return origin

    async def of_state(self, view: JobView) -> Origin:
        """The origin of the job that is shown."""
        key = JobKey(view.owner, view.id)
        known = self._known.get(key)
        return known if known is not None and known.made == view.created_at else await self._look_up(key)

    async def of_note(self, key: JobKey) -> Origin:
        """The origin of a job that says how far it is."""
        return self._known.get(key) or await self._look_up(key)

    async def _look_up(self, key: JobKey) -> Origin:
        """Empty for a job that is gone, or cannot be read now: a push without its name is better than none."""
        try:
            entry = await self._records.read(key)
        except (BusError, RecordUnreadable):
            return Origin()
        return Origin() if entry is None else self.learn(entry.recorded.job)
