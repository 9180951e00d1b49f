"""A job as it is stored in STATE, the request that made it, and the pointer that waits in JOBS.

The stored job is the truth. What a client is shown (`schemas.job_view`) is made from it at the edge.
"""

import hashlib
from datetime import datetime
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta, Struct, field

from schemas.ids import JobKey, Token
from schemas.status import Priority, Status

Moment = Annotated[datetime, Meta(tz=True)]
Seconds = Annotated[float, Meta(gt=0, le=30 * 86400)]

INPUT_LIMIT_BYTES = 64 * 1024  # `input`, as JSON; larger things are assets
OUTPUT_DATA_LIMIT_BYTES = 256 * 1024  # `output.data`, as JSON
NESTING_LIMIT = 64  # lists and objects in one another, in either of them
TRACE_ID_LIMIT_CHARS = 128
METRIC_LIMIT = 32  # names of metrics that are kept of one attempt
RECORD_LIMIT_BYTES = 512 * 1024  # one Recorded, as JSON; the broker's max_payload is 2 MB


class Pointer(NamedTuple):
    """What waits in JOBS: where to find the record, and which round of it is meant."""

    pool: str
    priority: Priority
    owner: str
    id: str
    round: int

    @property
    def key(self) -> JobKey:
        return JobKey(self.owner, self.id)


class PolicyRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The limits a client asks for; what it leaves out comes from the endpoint, then from `Policy`."""

    execution_timeout_s: Seconds | None = None
    stall_timeout_s: Seconds | None = None
    start_timeout_s: Seconds | None = None
    max_attempts: Annotated[int, Meta(ge=1, le=20)] | None = None
    input_timeout_s: Seconds | None = None


class Policy(Struct, frozen=True):
    """The limits a job runs under, all resolved at submit. Seconds.

    `execution_timeout_s` None: the endpoint's base_s + per_input_s x seconds of input, known once the input is there.
    """

    execution_timeout_s: float | None = None
    stall_timeout_s: float = 180.0
    start_timeout_s: float = 86400.0
    max_attempts: int = 3
    input_timeout_s: float = 1800.0


class Webhook(Struct, frozen=True):
    """Where a job's states are delivered (PROTOCOLS 5)."""

    url: Annotated[str, Meta(max_length=2048, pattern=r"^https?://")]
    events: tuple[Annotated[str, Meta(pattern="^state$")], ...] = ("state",)


class WebhookRequest(Webhook, frozen=True, forbid_unknown_fields=True):
    """The same as a client asks for it."""


class Submission(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/jobs`. Only `endpoint` and `input` are required."""

    endpoint: Token
    input: dict[str, Any]
    priority: Priority = Priority.NORMAL
    not_before: Moment | None = None
    deadline: Moment | None = None
    await_input: bool = False
    policy: PolicyRequest = PolicyRequest()
    webhook: WebhookRequest | None = None
    tags: Annotated[
        dict[Annotated[str, Meta(min_length=1, max_length=64)], Annotated[str, Meta(max_length=256)]],
        Meta(max_length=16),
    ] = field(default_factory=dict)
    trace_id: Annotated[str, Meta(max_length=TRACE_ID_LIMIT_CHARS)] | None = None


def request_digest(body: dict[str, Any]) -> str:
    """sha256 over the request as it was sent: no defaults filled in, keys sorted, `trace_id` left out.

    Two requests with the same digest are the same request; a replayed one answers with the job it made.
    """
    meant = {name: value for name, value in body.items() if name != "trace_id"}
    return hashlib.sha256(msgspec.json.encode(meant, order="sorted")).hexdigest()


def is_too_deep(given: Any) -> bool:
    """Whether `given` is nested deeper than DEPTH. Whoever walks or decodes a record does so by recursion."""
    level = [given]
    for _ in range(NESTING_LIMIT + 1):
        inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [value for values in inner for value in values]
        if not level:
            return False
    return True


class PendingUrl(Struct, frozen=True):
    """A file of the input that the edge fetches: `url` stands at `path` (`$.video`) of the input until it is there."""

    path: str
    url: str


class Claim(Struct, frozen=True):
    """Who runs the job: the fence. Only its holder may end the attempt (compare-and-set on the record).

    `incarnation` is one life of a runner process; `attempt` names the container together with the job's round.
    `gpu`: the UUIDs of its cards, with commas between them. `engine`: what runs it, `docker` or `process`; None in
    records of a runner that did not say.
    """

    host: Token
    incarnation: Token
    attempt: int
    gpu_uuids_joined: str | None = field(default=None, name="gpu")
    engine: str | None = None

    @property
    def gpu_uuids(self) -> tuple[str, ...]:
        """The cards one by one."""
        return tuple(self.gpu_uuids_joined.split(",")) if self.gpu_uuids_joined else ()


class JobFailure(Struct, frozen=True):
    """Why a job failed. `code` is of `failures.FAILURES` or the image's own.

    `log_tail`: the last lines that the attempt wrote to stderr, safe to print; the whole log is kept beside them.
    """

    code: str
    message: str
    blame: str
    retryable: bool
    log_tail: tuple[str, ...] = ()


class OutputFile(Struct, frozen=True):
    """One output: its bytes lie in the asset store under `sha256`."""

    name: str
    sha256: str
    bytes: int
    media_type: str


class Output(Struct, frozen=True):
    """What a job made: the files of `out/` and the object that the image answered (at most OUTPUT_DATA_BYTES)."""

    files: tuple[OutputFile, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)


class AttemptUsage(Struct, frozen=True):
    """What the last attempt took. Null where it was not measured (no card, or a card shared by two jobs)."""

    queued_s: float | None = None
    run_s: float | None = None
    gpu_energy_j: float | None = None
    gpu_utilization: float | None = None
    vram_peak_mb: int | None = None
    cost: float | None = None


class JobMetric(Struct, frozen=True):
    """A number that the job measured of itself: the last value under that name."""

    name: str
    value: float
    unit: str = ""


class Job(Struct, frozen=True, kw_only=True):
    """The record. What must not roll out of the 64 kept revisions is a field here, never counted from events.

    `attempt` numbers the starts of this round and never repeats, so (round, attempt) names one container;
    `charged` counts the starts that cost an attempt; `releases` counts the free ones by code.
    `claim` is the last claim: it holds while `status` is running or cancelling.
    `request_id`: what the gateway's client called its submit; pushes carry it, from any edge and after any reconnect.
    `backoff_until` comes from a release, `not_before` from the client.
    `missing` (digests) and `fetching` are what the input still lacks; with either the job is `scheduled`.
    """

    id: Token
    owner: Token
    endpoint: Token
    pool: Token
    status: Status
    request_digest: str = field(name="digest")
    input: dict[str, Any]
    policy: Policy = Policy()
    priority: Priority = Priority.NORMAL
    webhook: Webhook | None = None
    tags: dict[str, str] = field(default_factory=dict)
    trace_id: str = ""
    request_id: str = ""
    missing: tuple[str, ...] = ()
    pending_urls: tuple[PendingUrl, ...] = field(default=(), name="fetching")
    round: int = 1
    attempt: int = 0
    charged_attempts: int = field(default=0, name="charged")
    free_releases: dict[str, int] = field(default_factory=dict, name="releases")
    claim: Claim | None = None
    not_before: Moment | None = None
    deadline: Moment | None = None
    backoff_until: Moment | None = None
    created_at: Moment
    retried_at: Moment | None = None
    queued_at: Moment | None = None
    started_at: Moment | None = None
    finished_at: Moment | None = None
    output: Output | None = None
    error: JobFailure | None = None
    log: str | None = None
    usage: AttemptUsage = AttemptUsage()
    metrics: tuple[JobMetric, ...] = ()

    @property
    def key(self) -> JobKey:
        return JobKey(self.owner, self.id)

    @property
    def pointer(self) -> Pointer:
        """The message of this round."""
        return Pointer(self.pool, self.priority, self.owner, self.id, self.round)

    @property
    def lacks_input(self) -> bool:
        """Whether files of the input have still to be uploaded or fetched."""
        return bool(self.missing or self.pending_urls)

    @property
    def earliest_start(self) -> datetime | None:
        """The moment before which the job must not start, or None."""
        moments = [moment for moment in (self.not_before, self.backoff_until) if moment is not None]
        return max(moments, default=None)
