"""A job: its ids, its status, the record in STATE, the request that made it, and the pointer that waits in JOBS.

The stored job is the truth. The edge makes `schemas.job_view` of it for clients. Ids are tokens that may stand in a
NATS subject.
"""

import hashlib
import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta, Struct, field

# A token stands between two dots of a NATS subject. A "$" at the end of the pattern would allow a trailing newline.
TOKEN_PATTERN = r"^[A-Za-z0-9_-]{1,64}(?![\s\S])"  # noqa: S105 - a subject token, not a secret
Token = Annotated[str, Meta(pattern=TOKEN_PATTERN, description="1 to 64 characters of A-Z a-z 0-9 _ -")]
_TOKEN = re.compile(TOKEN_PATTERN)


def is_token(text: str) -> bool:
    """Return whether `text` may be an owner, host, pool, endpoint, key id or job id."""
    return _TOKEN.match(text) is not None


def derive_job_id(owner: str, key: str) -> str:
    """Return the job id for an `Idempotency-Key`: 32 hex digits of sha256 over owner and key."""
    return hashlib.sha256(f"{owner}\0{key}".encode()).hexdigest()[:32]


def make_uuid7(unix_ms: int, entropy: bytes) -> str:
    """Make a UUIDv7 (RFC 9562, section 5.7) of 10 bytes of `entropy`; such ids sort by time."""
    number = (unix_ms & (2**48 - 1)) << 80 | int.from_bytes(entropy[:10], "big")
    number = number & ~(0xF << 76) | 0x7 << 76
    number = number & ~(0x3 << 62) | 0x2 << 62
    text = f"{number:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


class JobKey(NamedTuple):
    """The name of a job everywhere. Ids are unique for each owner, not across owners."""

    owner: str
    id: str


class WaitReason(StrEnum):
    """The `reason` of a waiting Job, most relevant first. When several are true, a client sees the first."""

    AWAITING_INPUT = "awaiting_input"
    FETCHING_INPUT = "fetching_input"
    NOT_BEFORE = "not_before"
    BACKOFF = "backoff"
    ENDPOINT_PAUSED = "endpoint_paused"
    NO_HOST = "no_host"
    GPU_NONE = "gpu_none"
    REQUIREMENT_UNMET = "requirement_unmet"
    HOST_FAULT = "host_fault"
    HOST_BLOCKED = "host_blocked"
    HOST_BOOTING = "host_booting"
    HOST_WAKING = "host_waking"
    HOST_OFF = "host_off"
    HOST_OFF_UNSWITCHED = "host_off_unswitched"
    HOST_IN_MAINTENANCE = "host_in_maintenance"
    HOST_ENDING = "host_ending"
    PAUSED = "paused"
    ENGINE_AWAY = "engine_away"
    IMAGE_MISSING = "image_missing"
    IMAGE_PULLING = "image_pulling"
    VOLUME_MISSING = "volume_missing"
    VOLUME_FILLING = "volume_filling"
    GPU_UNHEALTHY = "gpu_unhealthy"
    GPU_BUSY_OWNER = "gpu_busy_owner"
    VRAM_SHORT = "vram_short"
    DISK_SHORT = "disk_short"
    GPU_SHARE_SHORT = "gpu_share_short"
    QUOTA = "quota"
    BEHIND = "behind"


WAIT_REASON_ORDER = tuple(WaitReason)


def most_relevant_reason(reasons: set[WaitReason]) -> WaitReason | None:
    """Return the first reason in the order of WaitReason; None for an empty set."""
    return next((reason for reason in WAIT_REASON_ORDER if reason in reasons), None)


class Status(StrEnum):
    """The status of a job. `lifecycle.TRANSITIONS` says what moves it from one to the next."""

    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


WAITING_STATUSES = frozenset({Status.SCHEDULED, Status.QUEUED})
ACTIVE_STATUSES = frozenset({Status.RUNNING, Status.CANCELLING})
FINAL_STATUSES = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.EXPIRED})


class Priority(StrEnum):
    """The queue of the pool in which a job waits. The runner looks into the queues in this order."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


PRIORITIES = (Priority.HIGH, Priority.NORMAL, Priority.LOW)


class Blame(StrEnum):
    """The party to blame for a failure. It decides the user's text and whether the job is tried again."""

    CLIENT = "client"
    IMAGE = "image"
    GPU = "gpu"
    HOST = "host"


Moment = Annotated[datetime, Meta(tz=True)]
Seconds = Annotated[float, Meta(gt=0, le=30 * 86400)]

INPUT_LIMIT_BYTES = 64 * 1024  # of `input` as JSON; larger data goes into assets
OUTPUT_DATA_LIMIT_BYTES = 256 * 1024  # `output.data`, as JSON
NESTING_LIMIT = 64  # levels of lists and objects, in either of them
TRACE_ID_LIMIT_CHARS = 128
METRIC_LIMIT = 32  # names of metrics that are kept of one attempt
RECORD_LIMIT_BYTES = 512 * 1024  # one JobRecord as JSON; the broker's max_payload is 2 MB


class Pointer(NamedTuple):
    """A message of JOBS: which record to read, and which round of the job it is for."""

    pool: str
    priority: Priority
    owner: str
    id: str
    round: int

    @property
    def key(self) -> JobKey:
        return JobKey(self.owner, self.id)


class PolicyRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The limits that a client asks for. The endpoint, then `Policy`, give what is left out."""

    execution_timeout_s: Seconds | None = None
    stall_timeout_s: Seconds | None = None
    start_timeout_s: Seconds | None = None
    max_attempts: Annotated[int, Meta(ge=1, le=20)] | None = None
    input_timeout_s: Seconds | None = None


class Policy(Struct, frozen=True):
    """The limits of a job, all resolved at submit. Seconds.

    `execution_timeout_s` None: the endpoint's `base_s + per_input_s` x seconds of input, known once the input is
    complete.
    """

    execution_timeout_s: float | None = None
    stall_timeout_s: float = 180.0
    start_timeout_s: float = 86400.0
    max_attempts: int = 3
    input_timeout_s: float = 1800.0


class Webhook(Struct, frozen=True):
    """The URL to which a job's states are delivered."""

    url: Annotated[str, Meta(max_length=2048, pattern=r"^https?://")]
    events: tuple[Annotated[str, Meta(pattern="^state$")], ...] = ("state",)


class WebhookRequest(Webhook, frozen=True, forbid_unknown_fields=True):
    """A webhook as a client asks for it; unknown fields are refused."""


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
    """Return the sha256 of the request as it was sent: without defaults, keys sorted, without `trace_id`.

    Two requests with the same digest are the same request; a repeated one is answered with the job of the first.
    """
    request = {name: value for name, value in body.items() if name != "trace_id"}
    return hashlib.sha256(msgspec.json.encode(request, order="sorted")).hexdigest()


def is_too_deep(value: Any) -> bool:
    """Return whether a value is nested deeper than NESTING_LIMIT. Records are decoded and walked by recursion."""
    level = [value]
    for _ in range(NESTING_LIMIT + 1):
        inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [item for items in inner for item in items]
        if not level:
            return False
    return True


class PendingUrl(Struct, frozen=True):
    """A file of the input that the edge fetches. `url` stands at `path` (`$.video`) of the input until it is there."""

    path: str
    url: str


class Claim(Struct, frozen=True):
    """The host that runs the job: the fence. Only its holder may end the attempt, by compare-and-set on the record.

    `incarnation` names one runner process; `attempt` names the container, together with the round of the job.
    `gpu_uuids_joined`: the UUIDs of its GPUs, separated by commas. `engine`: `docker` or `process`; None in records of
    earlier releases. `isolation`: the runtime of the container, `bubblewrap` or `process`; None in records of
    earlier releases.
    """

    host: Token
    incarnation: Token
    attempt: int
    gpu_uuids_joined: str | None = field(default=None, name="gpu")
    engine: str | None = None
    isolation: str | None = None

    @property
    def gpu_uuids(self) -> tuple[str, ...]:
        """The UUIDs of the GPUs; empty if it has none."""
        return tuple(self.gpu_uuids_joined.split(",")) if self.gpu_uuids_joined else ()


class JobProgram(Struct, frozen=True):
    """The program that ran in an attempt. Digests are `sha256:` and 64 hex digits.

    `image`: as the endpoint names it. `image_digest`: that of its registry, or the engine's id of an image that was
    built on the host. The process engine has neither. `endpoint_digest`: of the bytes of the endpoint.toml.
    """

    image: str | None = None
    image_digest: str | None = None
    endpoint_digest: str | None = None


class JobFailure(Struct, frozen=True):
    """Why a job failed. `code` is a key of `schemas.lifecycle.FAILURES`, or the image's own.

    `retryable`: whether a `retry` by the owner may succeed with the same request. `log_tail`: the last lines that the
    attempt wrote to stderr, safe to print; the whole log is stored too.
    """

    code: str
    message: str
    blame: str
    retryable: bool
    log_tail: tuple[str, ...] = ()


class OutputFile(Struct, frozen=True):
    """One output file; its bytes are in the asset store under `sha256`."""

    name: str
    sha256: str
    bytes: int
    media_type: str


class Output(Struct, frozen=True):
    """The result of a job: the files of `out/`, and the object in `output.json` (at most 256 KiB)."""

    files: tuple[OutputFile, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)


class AttemptUsage(Struct, frozen=True):
    """The resources that the last attempt used.

    Null where they were not measured: no GPU, or one shared by two jobs.
    """

    queued_s: float | None = None
    run_s: float | None = None
    gpu_energy_j: float | None = None
    gpu_utilization: float | None = None
    vram_peak_mb: int | None = None
    cost: float | None = None


class JobMetric(Struct, frozen=True):
    """A number that the job measured of itself: the last value under this name."""

    name: str
    value: float
    unit: str = ""


class Job(Struct, frozen=True, kw_only=True):
    """The stored job. Values that must outlive the 64 stored revisions are fields here and not counted from events.

    `attempt` numbers the starts of this round and never repeats, so (round, attempt) names one container.
    `charged_attempts` counts the starts that cost an attempt; `free_releases` counts the free ones by code. `claim` is
    the last claim, which holds while `status` is running or cancelling. `program` is what ran in the attempt of that
    claim; None before the first attempt, and in records of earlier releases. `request_id` is the id that the
    gateway's client gave to its submit; pushes carry it. `backoff_until` comes from a release, `not_before` from the
    client. `missing` (digests) and `pending_urls` are what the input still lacks; with either the job is `scheduled`.
    `traceparent`: the span of its submit, or the client's, which all spans of the job are inside; None without a trace.
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
    program: JobProgram | None = None
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
    traceparent: str | None = None

    @property
    def key(self) -> JobKey:
        return JobKey(self.owner, self.id)

    @property
    def pointer(self) -> Pointer:
        """The message in JOBS for the job's current round."""
        return Pointer(self.pool, self.priority, self.owner, self.id, self.round)

    @property
    def lacks_input(self) -> bool:
        """Whether files of the input still have to be uploaded or fetched."""
        return bool(self.missing or self.pending_urls)

    @property
    def earliest_start(self) -> datetime | None:
        """The time before which the job must not start, or None."""
        moments = [moment for moment in (self.not_before, self.backoff_until) if moment is not None]
        return max(moments, default=None)
