"""Rows that concern the whole installation: leases of edges, audit events, and constants that all edges share."""

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
    """An action on keys, hosts or owners."""

    KEY_CREATED = "key_created"
    KEY_ROTATED = "key_rotated"
    KEY_REVOKED = "key_revoked"
    HOST_ADDED = "host_added"
    HOST_REMOVED = "host_removed"
    OWNER_DELETED = "owner_deleted"


class AuditEvent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A row of AUDIT: one action, of `AuditAction` or of a newer edge.

    `subject`: the id of the key, host or owner. `by`: the id of the key that asked for it, or BY_UP or BY_EDGE for what
    `lamplighter up` or the first edge created at its start. `client`: the address of the request, or empty. `owner` and
    `scopes`: of a key that was created.
    """

    at: Moment
    action: str
    subject: str
    by: str
    client: str
    owner: str = ""
    scopes: tuple[Scope, ...] = ()


class InstallationConstant(Struct, frozen=True):
    """A row of AGREED: a value that all edges share, written once by the first edge."""

    value: str
    at: Moment
