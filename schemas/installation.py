"""Work that one edge at a time should do, although two would do no harm."""

from enum import StrEnum

from msgspec import Struct

from schemas.auth import Scope
from schemas.job import Moment

LEASE_TTL_S = 15.0


class Lease(Struct, frozen=True):
    """A row of LEASES: it goes by itself LEASE_TTL_S after its holder last wrote it."""

    holder: str
    at: Moment


# MERGED schemas/audit.py: What was done to who may come in: keys, hosts, owners (bucket AUDIT).


# In place of a key's id, which never has a dot.
BY_UP = "lamplighter.up"
BY_EDGE = "lamplighter.edge"


class AuditAction(StrEnum):
    """What was done."""

    KEY_CREATED = "key_created"
    KEY_ROTATED = "key_rotated"
    KEY_REVOKED = "key_revoked"
    HOST_ADDED = "host_added"
    HOST_REMOVED = "host_removed"
    OWNER_DELETED = "owner_deleted"


class AuditEvent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One action, of `AuditAction` or of a newer edge's.

    `subject`: the id of the key, host or owner. `by`: the id of the key that asked for it; BY_UP or BY_EDGE for what
    `lamplighter up` or a first edge made at its start. `client`: the address that it was asked from, or empty.
    `owner` and `scopes`: of a key that was made.
    """

    at: Moment
    action: str
    subject: str
    by: str
    client: str
    owner: str = ""
    scopes: tuple[Scope, ...] = ()


class InstallationConstant(Struct, frozen=True):
    """A row of AGREED: one thing that all edges of an installation hold to, written once by the first."""

    value: str
    at: Moment
