"""`GET /v1/audit`: what was done to keys, hosts and owners. Scope admin."""

from typing import Annotated

from litestar import get
from litestar.params import QueryParameter
from msgspec import Struct

from edge.auth.keys import needs
from edge.routes.given import Services
from edge.services.refusals import refusing
from schemas.access import Scope
from schemas.audit import AuditEvent


class AuditTrail(Struct, frozen=True):
    """Events, newest first."""

    events: list[AuditEvent]


@get("/v1/audit", guards=[needs(Scope.ADMIN)])
async def list_audit(parts: Services, limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 100) -> AuditTrail:
    """Who made, rotated and revoked keys, added and removed hosts, and deleted owners; kept for 400 days."""
    with refusing():
        return AuditTrail(await parts.audit.recent(limit))


ROUTES = (list_audit,)
