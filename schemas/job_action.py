"""An action on many jobs: its durable request, progress and report."""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from schemas.ids import Token
from schemas.job import Moment
from schemas.status import Priority, Status

ACTION_JOBS_LIMIT = 1000  # ids in one request
FAILURES_LIMIT = 100  # failures that a report lists


class JobActionKind(StrEnum):
    """The change that is made to each job."""

    CANCEL = "cancel"
    RETRY = "retry"
    DELETE = "delete"


class JobActionState(StrEnum):
    """RUNNING until no matching job is left."""

    RUNNING = "running"
    DONE = "done"


class JobActionFilter(Struct, frozen=True, omit_defaults=True):
    """The jobs that an action is for, by the conditions of `GET /v1/jobs`. Empty: every job of the owner."""

    status: tuple[Status, ...] = ()
    endpoint: Token | None = None
    priority: Priority | None = None
    tags: dict[str, str] = {}
    code: Annotated[str, Meta(max_length=64)] | None = None
    text: Annotated[str, Meta(max_length=200)] | None = None
    created_from: Moment | None = None
    created_to: Moment | None = None


class JobActionFailure(Struct, frozen=True):
    """A job that the action could not change, and why: `code` and `detail` of the problem."""

    id: str
    code: str
    detail: str


class JobActionCounts(Struct, frozen=True):
    """The number of jobs that were changed; that needed no change, such as ended ones for `cancel`; that failed."""

    done: int = 0
    skipped: int = 0
    failed: int = 0

    def __add__(self, other: "JobActionCounts") -> "JobActionCounts":
        """Return the sum of both counts."""
        return JobActionCounts(self.done + other.done, self.skipped + other.skipped, self.failed + other.failed)

    @property
    def total(self) -> int:
        """The number of jobs that were handled, whatever the outcome."""
        return self.done + self.skipped + self.failed


class JobAction(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A row of ACTIONS, under `<owner>.<id>`.

    `ids`: the jobs; empty if `filter` names them. `total`: how many there were at the request. `page`: the jobs that
    are being changed. `position`: the id or the cursor after which the next page starts; `is_last_page`: there is no
    next one. `failures`: the first FAILURES_LIMIT. `waits_for`: why the action does not go on at the moment.
    `conditions`: the names of the fields that are set in `filter`. An edge that does not know one of them would act on
    too many jobs, so it leaves the action to a newer edge.
    """

    id: Token
    owner: Token
    kind: JobActionKind
    requested_by: str
    requested_at: Moment
    state: JobActionState = JobActionState.RUNNING
    ids: tuple[str, ...] = ()
    filter: JobActionFilter | None = None
    conditions: tuple[str, ...] = ()
    total: int = 0
    page: tuple[str, ...] = ()
    position: str | None = None
    is_last_page: bool = False
    counts: JobActionCounts = JobActionCounts()
    failures: tuple[JobActionFailure, ...] = ()
    waits_for: str | None = None
    finished_at: Moment | None = None

    @property
    def key(self) -> str:
        """The key of the row in the bucket ACTIONS."""
        return f"{self.owner}.{self.id}"

    @property
    def is_known(self) -> bool:
        """Whether this release knows every condition of the filter."""
        return set(self.conditions) <= set(JobActionFilter.__struct_fields__)
