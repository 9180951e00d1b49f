"""Jobs as clients see them: the view of one job, and the usage and cost of all. The SDK decodes both.

The edge makes `JobView` from the record of a job. It makes `UsageReport` from the rows of USAGE, which are stored for
400 days.
"""

from typing import Any

from msgspec import Struct, field

from schemas.job import AttemptUsage, JobFailure, JobMetric, JobProgram, Moment, Priority, Status, Token


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


class JobUsage(Struct, frozen=True, kw_only=True):
    """One finished round of one job, from `revision` of its record.

    `run_s`: seconds of its last attempt. `gpus`: how many GPUs it had. `cost`: as computed by the host's runner, in the
    runner's own currency; None where it has no price. `started_at` None: it never ran.
    """

    owner: Token
    id: Token
    round: int
    revision: int
    endpoint: Token
    status: Status
    finished_at: Moment
    started_at: Moment | None = None
    host: Token | None = None
    run_s: float = 0.0
    gpus: int = 0
    energy_j: float | None = None
    cost: float | None = None


class PowerUsage(Struct, frozen=True, kw_only=True):
    """One on interval of a host. `per_hour` is the price at that time; None: unknown."""

    host: Token
    since: Moment
    until: Moment
    on_reason: str = field(default="", name="why")
    per_hour: float | None = None
    currency: str = ""


UsageRow = JobUsage | PowerUsage


class Cost(Struct, frozen=True):
    """An amount of money in the unit of `currency`."""

    amount: float
    currency: str


class EndpointUsage(Struct, frozen=True, kw_only=True):
    """The usage of one endpoint's jobs. `hours_on` is their share of the hours in which their hosts were on."""

    endpoint: str
    jobs: int
    gpu_s: float
    energy_j: float
    cost: Cost
    hours_on: float


class UsageReport(Struct, frozen=True, kw_only=True):
    """The answer of `GET /v1/usage`. `edge.usage` describes how time and money are allocated.

    `owner` null: all owners. `cost` is in the currency with the highest cost, `costs` has all of them. `hours_saved`:
    the hours in which declared hosts were off, compared with hosts that are always on.
    """

    since: Moment = field(name="from")
    until: Moment = field(name="to")
    owner: str | None
    jobs: int
    gpu_s: float
    energy_j: float
    cost: Cost
    costs: tuple[Cost, ...]
    hours_on: float
    hours_saved: float
    by_endpoint: tuple[EndpointUsage, ...] = field(name="by")
