"""What a run leaves behind to be judged: everything clients saw, STATE's own history, the jobs' stamps, what is left.

All of it is plain data, so that the checker is a pure function and a failing run can be read again from its files.
"""

from msgspec import Struct

from bus.interface import VersionedRecord
from schemas.events import event_to_dict
from schemas.status import FINAL_STATUSES, Status


class SubmitAccepted(Struct, frozen=True, tag="accepted"):
    """A submit was answered 200 or 202. `name` is what the client called it: its idempotency key, or the id it gave."""

    client: str
    name: str
    job_id: str


class JobShown(Struct, frozen=True, tag="read"):
    """A client asked for the job, or cancelled or retried it, and was shown this revision."""

    client: str
    job_id: str
    revision: int
    status: Status
    round: int


class StreamMessage(Struct, frozen=True, tag="told"):
    """One message of a stream, whose `id` is `<epoch>-<sequence>-…`. A state has a revision and a status.

    `stream` names one follower over all its connections: each resumes behind the last id.
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
        """The life of FEED that the id belongs to."""
        return self.id.split("-")[0]

    @property
    def sequence(self) -> int:
        """The place in FEED."""
        return int(self.id.split("-")[1])

    @property
    def final(self) -> bool:
        """Whether it is the end of a round."""
        return self.status in FINAL_STATUSES


class StreamClosed(Struct, frozen=True, tag="closed"):
    """The edge ended the stream in good order: it says that nothing more will come."""

    stream: str


class OutputDownloaded(Struct, frozen=True, tag="fetched"):
    """An output was downloaded: the digest that the record promised, that of the bytes, and that of the right ones."""

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
        """As the bus gives it."""
        job = entry.record.job
        return cls(entry.revision, event_to_dict(entry.record.event)["type"], job.status, job.round, job.attempt)


class ContainerRunTimes(Struct, frozen=True):
    """One container, by its own stamps: seconds of the machine's monotonic clock, the last one when it last stamped."""

    host: str
    job_id: str
    round: int
    attempt: int
    first: float
    last: float


class HostOutage(Struct, frozen=True):
    """A host that nobody could hear, from when to when (same clock): a network cut, or a process that stood still."""

    host: str
    since: float
    until: float


class Evidence(Struct, frozen=True, kw_only=True):
    """All of it, in the order in which it happened; `left` says in words what should not be there any more."""

    seen: tuple[Observation, ...] = ()
    state: dict[str, tuple[JobRevision, ...]] = {}
    runs: tuple[ContainerRunTimes, ...] = ()
    cuts: tuple[HostOutage, ...] = ()
    left: tuple[str, ...] = ()
