"""Rows that concern the whole installation: leases of edges, audit events, shared constants, and pauses."""

from enum import StrEnum

from msgspec import Struct

from schemas.auth import Scope
from schemas.job import Moment

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
