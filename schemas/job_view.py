"""A Job as clients see it. The edge makes it from the record; the SDK decodes it."""

from typing import Any

from msgspec import Struct, field

from schemas.job import AttemptUsage, JobFailure, JobMetric, JobProgram, Moment
from schemas.status import Priority, Status


class Eta(Struct, frozen=True):
    """When the job should start and end, estimated from `samples` earlier runs."""

    start_at: Moment | None = None
    finish_at: Moment | None = None
    p90_finish_at: Moment | None = None
    samples: int = 0


class ProgressView(Struct, frozen=True):
    """The progress of the job; `fraction` in [0, 1]."""

    fraction: float
    stage: str | None = None
    done: int | None = None
    total: int | None = None


class FileView(Struct, frozen=True):
    """An output file. `url` is where it can be downloaded."""

    name: str
    sha256: str
    bytes: int
    media_type: str
    url: str


class OutputView(Struct, frozen=True):
    """The result of the job: its output files, and the data that the image returned."""

    files: tuple[FileView, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)


class JobUrls(Struct, frozen=True):
    """The URLs of the job's own routes."""

    self: str
    events: str
    cancel: str
    retry: str
    logs: str


class JobView(Struct, frozen=True, kw_only=True):
    """A Job on the wire.

    `queue_position` 0 is next to start, null when it does not wait; `reason` is set while it waits.

    `engine`: what runs the last attempt on its host: `docker`, a container, or `process`, a plain process. `isolation`:
    what isolates it there: `runc`, `runsc`, `kata`, `bubblewrap`, or `process` for nothing. `program`: which image and
    which endpoint.toml that is. `metrics`: the last value of each number that the job reported, once it has ended.
    """

    id: str
    owner: str
    endpoint: str
    status: Status
    revision: int
    reason: str | None = None
    message: str | None = None
    missing: tuple[str, ...] = ()
    queue_position: int | None = None
    eta: Eta | None = None
    progress: ProgressView | None = None
    input: dict[str, Any]
    output: OutputView | None = None
    error: JobFailure | None = None
    round: int
    attempt: int
    max_attempts: int
    priority: Priority
    tags: dict[str, str]
    trace_id: str
    host: str | None = None
    gpu: str | None = None
    engine: str | None = None
    isolation: str | None = None
    program: JobProgram | None = None
    created_at: Moment
    queued_at: Moment | None = None
    started_at: Moment | None = None
    finished_at: Moment | None = None
    not_before: Moment | None = None
    deadline: Moment | None = None
    usage: AttemptUsage
    metrics: tuple[JobMetric, ...] = ()
    urls: JobUrls


class HistoryRow(Struct, frozen=True):
    """One row of `GET /v1/jobs/{id}/history`."""

    revision: int
    at: Moment
    event: dict[str, Any]
    status: Status
