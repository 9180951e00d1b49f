"""The evidence of a run: what clients saw, the history in STATE, the jobs' stamps, and what is left.

All of it is plain data, so that the checker is a pure function and a failed run can be read again from its files.
"""

from msgspec import Struct

from bus.interface import VersionedRecord
from schemas.events import event_to_dict
from schemas.job import FINAL_STATUSES, Status


class SubmitAccepted(Struct, frozen=True, tag="accepted"):
    """A submit was answered 200 or 202. `name` is the client's idempotency key, or the id that it chose."""

    client: str
    name: str
    job_id: str


class JobShown(Struct, frozen=True, tag="read"):
    """A read, a cancel or a retry of the job was answered with this revision."""

    client: str
    job_id: str
    revision: int
    status: Status
    round: int


class StreamMessage(Struct, frozen=True, tag="told"):
    """One message of a stream, whose `id` is `<epoch>-<sequence>-…`. A state has a revision and a status.

    `stream` names one follower over all its connections: each connection resumes after the last id.
    """

    stream: str
    id: str
    kind: str
    job_id: str
    round: int
    attempt: int
    revision: int | None = None
    status: Status | None = None

    @property
    def epoch(self) -> str:
        """The incarnation of FEED that the id belongs to."""
        return self.id.split("-")[0]

    @property
    def sequence(self) -> int:
        """The position in FEED."""
        return int(self.id.split("-")[1])

    @property
    def final(self) -> bool:
        """Whether it is the end of a round."""
        return self.status in FINAL_STATUSES


class StreamClosed(Struct, frozen=True, tag="closed"):
    """The edge closed the stream properly: it says that nothing more will come."""

    stream: str


class OutputDownloaded(Struct, frozen=True, tag="fetched"):
    """A downloaded output: the digests that the record promised, of the received bytes, and of the right bytes."""

    job_id: str
    name: str
    promised: str
    got: str
    right: str


Observation = SubmitAccepted | JobShown | StreamMessage | StreamClosed | OutputDownloaded


class JobRevision(Struct, frozen=True):
    """One entry of a job's history in STATE."""

    revision: int
    event: str
    status: Status
    round: int
    attempt: int

    @classmethod
    def of(cls, entry: VersionedRecord) -> "JobRevision":
        """Convert an entry of the bus."""
        job = entry.record.job
        return cls(entry.revision, event_to_dict(entry.record.event)["type"], job.status, job.round, job.attempt)


class ContainerRunTimes(Struct, frozen=True):
    """The first and the last stamp of a container, in seconds of the machine's monotonic clock."""

    host: str
    job_id: str
    round: int
    attempt: int
    first: float
    last: float


class HostOutage(Struct, frozen=True):
    """The time (same clock) in which a host was cut off, or its process was stopped."""

    host: str
    since: float
    until: float


class Evidence(Struct, frozen=True, kw_only=True):
    """Everything of a run, in the order in which it happened. `left` lists in words what should be gone."""

    seen: tuple[Observation, ...] = ()
    state: dict[str, tuple[JobRevision, ...]] = {}
    runs: tuple[ContainerRunTimes, ...] = ()
    cuts: tuple[HostOutage, ...] = ()
    left: tuple[str, ...] = ()
