"""Rows that concern the whole installation: leases, audit events, shared constants, pauses, notices, and bulk actions.

A notice is about a condition of `THRESHOLDS`. `edge.notify` sends messages by this table, and deploy/alert_rules.py
makes Prometheus alerts from it. A bulk action is one on many things that an edge continues after a crash: a change of
many jobs, or the deletion of an owner. It has a durable request, which is also its progress and its report.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct, field

from schemas.credentials import Scope
from schemas.job import Moment, Priority, Status, Token

LEASE_TTL_S = 15.0


class Lease(Struct, frozen=True):
    """A row of LEASES, for work that one edge at a time should do. It expires LEASE_TTL_S after its last write."""

    holder: str
    at: Moment


# Values of `by` that are not a key id, which never has a dot.
BY_UP = "lamplighter.up"
BY_EDGE = "lamplighter.edge"


class AuditAction(StrEnum):
    """Actions in the audit log. `*_jobs`: an action on many jobs. The first word is the kind of the subject."""

    KEY_CREATED = "key_created"
    KEY_ROTATED = "key_rotated"
    KEY_REVOKED = "key_revoked"
    HOST_ADDED = "host_added"
    HOST_REMOVED = "host_removed"
    HOST_TOKEN_CREATED = "host_token_created"  # noqa: S105 - the name of an action
    HOST_TOKEN_REVOKED = "host_token_revoked"  # noqa: S105 - the name of an action
    HOST_JOINED = "host_joined"  # with a token that many hosts share
    HOST_LEFT = "host_left"  # such a host ended
    HOST_POWER_SET = "host_power_set"
    HOST_MAINTENANCE_STARTED = "host_maintenance_started"
    HOST_MAINTENANCE_ENDED = "host_maintenance_ended"
    ENDPOINT_PAUSED = "endpoint_paused"
    ENDPOINT_RESUMED = "endpoint_resumed"
    OWNER_DELETED = "owner_deleted"
    JOB_CANCELLED = "job_cancelled"  # by a key of another owner
    JOB_RETRIED = "job_retried"  # by a key of another owner
    JOB_DELETED = "job_deleted"
    JOB_ACTION_STARTED = "job_action_started"
    ASSET_DELETED = "asset_deleted"
    WEBHOOK_SECRET_ROTATED = "webhook_secret_rotated"  # noqa: S105 - the name of an action
    WEBHOOK_ADDED = "webhook_added"
    WEBHOOK_DELETED = "webhook_deleted"
    SECRET_SET = "secret_set"  # noqa: S105 - the name of an action
    SECRET_DELETED = "secret_deleted"  # noqa: S105 - the name of an action
    SECRET_KEY_ROTATED = "secret_key_rotated"  # noqa: S105 - the name of an action
    NOTIFICATIONS_TESTED = "notifications_tested"
    SETTINGS_CHANGED = "settings_changed"


class AuditEvent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A row of AUDIT: one action, of `AuditAction` or of a newer edge.

    `subject`: the id of the key, host, owner, job or asset, or the name of the endpoint or secret. `by`: the id of the
    key that asked for it, or BY_UP or BY_EDGE for what `lamplighter up` or an edge did at its start. `client`: the
    address of the request, or empty. `owner`: that of the subject. `scopes`: of a key that was created. `details`: by
    name, without secrets.
    """

    at: Moment
    action: str
    subject: str
    by: str
    client: str
    owner: str = ""
    scopes: tuple[Scope, ...] = ()
    details: dict[str, str] = {}


class InstallationConstant(Struct, frozen=True):
    """A row of AGREED: a value that all edges share, written once by the first edge."""

    value: str
    at: Moment


class Pause(Struct, frozen=True):
    """A row of PAUSES, while it exists. `by`: the owner of the key that asked for it."""

    since: Moment
    by: str = ""


def endpoint_pause_key(endpoint: str) -> str:
    """Return the key in PAUSES of a paused endpoint."""
    return f"endpoint.{endpoint}"


def maintenance_key(host: str) -> str:
    """Return the key in PAUSES of a host that is in maintenance."""
    return f"host.{host}"


_MINUTE_S, _HOUR_S, _DAY_S = 60.0, 3600.0, 86_400.0


class Condition(StrEnum):
    """Something that is wrong. An edge cannot tell EDGE_DOWN of itself, so only Prometheus does."""

    EDGE_DOWN = "edge_down"
    BROKER_NOT_DURABLE = "broker_not_durable"
    BROKER_STORE_FULL = "broker_store_full"
    QUEUE_GROWING = "queue_growing"
    WAIT_TOO_LONG = "wait_too_long"
    HOST_FAULT = "host_fault"
    WAKE_FAILED = "wake_failed"
    GPU_UNHEALTHY = "gpu_unhealthy"
    HOST_IDLE = "host_idle"
    WEBHOOKS_DELAYED = "webhooks_delayed"
    CERTIFICATE_EXPIRING = "certificate_expiring"
    DISK_FULL = "disk_full"
    CLOCK_SKEW = "clock_skew"
    FAILURE_RATE = "failure_rate"
    BACKUP_OLD = "backup_old"


class Threshold(Struct, frozen=True, kw_only=True):
    """When a condition holds.

    `limit`: a number without a unit of time. `age_s`: an age or a remaining time. `window_s`: the time over which a
    change is measured. `for_s`: how long it must hold before it is sent. `is_critical`: jobs are refused, or the
    edge cannot power a host.
    """

    limit: float = 0.0
    age_s: float = 0.0
    window_s: float = 0.0
    for_s: float = 300.0
    is_critical: bool = False


THRESHOLDS: Mapping[Condition, Threshold] = {
    Condition.EDGE_DOWN: Threshold(for_s=120, is_critical=True),
    Condition.BROKER_NOT_DURABLE: Threshold(for_s=60, is_critical=True),
    Condition.BROKER_STORE_FULL: Threshold(limit=0.8, is_critical=True),
    Condition.QUEUE_GROWING: Threshold(limit=20, window_s=10 * _MINUTE_S, for_s=30 * _MINUTE_S),
    Condition.WAIT_TOO_LONG: Threshold(age_s=_HOUR_S, for_s=60),
    Condition.HOST_FAULT: Threshold(for_s=0, is_critical=True),
    Condition.WAKE_FAILED: Threshold(window_s=30 * _MINUTE_S, for_s=0),
    Condition.GPU_UNHEALTHY: Threshold(for_s=60),
    Condition.HOST_IDLE: Threshold(age_s=15 * _MINUTE_S, window_s=_DAY_S, for_s=60),
    Condition.WEBHOOKS_DELAYED: Threshold(age_s=_HOUR_S, for_s=60),
    Condition.CERTIFICATE_EXPIRING: Threshold(age_s=14 * _DAY_S, for_s=60),
    Condition.DISK_FULL: Threshold(limit=0.1),
    Condition.CLOCK_SKEW: Threshold(age_s=30),
    Condition.FAILURE_RATE: Threshold(limit=0.2, window_s=_HOUR_S, for_s=60),
    Condition.BACKUP_OLD: Threshold(age_s=2 * _DAY_S, window_s=2 * _DAY_S),
}
FAILED_JOBS_LIMIT = 3  # FAILURE_RATE needs more failed jobs than this


JOB_FAILED = "job_failed"  # in place of a condition


class PendingMessage(Struct, frozen=True):
    """A message that a target has not got. It is tried again from `next_at` on; None: now."""

    failures: int = 0
    next_at: Moment | None = None


class Notice(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A condition that began, and may have ended; or a failed job, which has ended when it begins.

    `condition`: a value of `Condition`, or JOB_FAILED. `subject`: the host, endpoint or job that it
    is about; empty for the installation. `values`: the figures of its text. `pending`: by target, the message that the
    target has not got: about the begin while it holds, else about the end.
    """

    condition: str
    subject: str
    values: dict[str, str]
    began_at: Moment
    ended_at: Moment | None = None
    pending: dict[str, PendingMessage] = {}


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


class DeletedOwner(Struct, frozen=True):
    """A row of DELETED_OWNERS, under the owner: hosts remove what they keep between its jobs.

    `at`: when the last of its jobs had ended.
    """

    at: Moment


class OwnerDeletionState(StrEnum):
    """The state of the deletion of an owner's data."""

    RUNNING = "running"
    VERIFYING = "settling"  # nothing is left; look again for what was in flight
    DONE = "done"


class DeletionCounts(Struct, frozen=True, kw_only=True):
    """The counts of deleted things, without the steps right before an edge was killed.

    `cancelled`: the jobs that had not ended. `bytes`: of the assets, each file once. `deliveries`: of webhooks, sent or
    not. `feed`: messages for followers.
    """

    jobs: int = 0
    cancelled: int = 0
    assets: int = 0
    bytes: int = 0
    uploads: int = 0
    keys: int = 0
    deliveries: int = 0
    feed: int = 0
    usage_rows: int = 0
    secrets: int = 0

    def __add__(self, other: "DeletionCounts") -> "DeletionCounts":
        """Return the sum of both counts."""
        return DeletionCounts(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})

    @property
    def is_empty(self) -> bool:
        """Whether nothing was found that had to be deleted."""
        return self == DeletionCounts()


class OwnerDeletion(Struct, frozen=True, kw_only=True):
    """A row of ERASURES, under the owner. Until it is done, new requests of the owner are refused.

    `requested_by`: the key that asked. `waiting_for`: jobs that are still being stopped. `hosts_pending`: hosts that
    may have files of the owner in their caches until they next take work. `empty_since`: since when nothing more was
    found.
    """

    owner: Token
    requested_at: Moment = field(name="asked_at")
    requested_by: str = field(default="", name="by")
    state: OwnerDeletionState = OwnerDeletionState.RUNNING
    counts: DeletionCounts = field(default=DeletionCounts(), name="erased")
    waiting_for: int = 0
    hosts_pending: tuple[str, ...] = ()
    empty_since: Moment | None = field(default=None, name="quiet_since")
    finished_at: Moment | None = None
