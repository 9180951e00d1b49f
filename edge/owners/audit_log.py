"""The trail of who may come in: each key made, rotated or revoked, each host added or removed, each owner deleted."""

import structlog

from bus.interface import BusError, Table
from edge.core.clock import Clock, Entropy, micros
from schemas.auth import ApiKey, Scope
from schemas.installation import AuditAction, AuditEvent

_ID_BYTES = 4

_log = structlog.get_logger()


class AuditLog:
    """Writes to the bucket AUDIT, under the time, and to the log."""

    def __init__(self, table: Table[AuditEvent], clock: Clock, entropy: Entropy) -> None:
        self._table, self._clock, self._entropy = table, clock, entropy

    async def record(  # noqa: PLR0913 - the fields of an event
        self,
        action: AuditAction,
        subject: str,
        *,
        by: str,
        client: str,
        owner: str = "",
        scopes: tuple[Scope, ...] = (),
    ) -> None:
        """Keep what was done. A broker that does not take it costs the event in AUDIT, not the one in the log."""
        event = AuditEvent(
            at=self._clock(), action=action, subject=subject, by=by, client=client, owner=owner, scopes=scopes
        )
        _log.warning("audit", action=action, subject=subject, by_key=by, client=client, owner=owner)
        await self._keep(event)

    async def key_made_at_start(self, key: ApiKey, by: str) -> None:
        """Keep that `by` (BY_UP, BY_EDGE) made a key for itself. Not a warning: every new installation does this."""
        event = AuditEvent(
            at=self._clock(),
            action=AuditAction.KEY_CREATED,
            subject=key.id,
            by=by,
            client="",
            owner=key.owner,
            scopes=key.scopes,
        )
        _log.info("audit", action=event.action, subject=key.id, by_key=by, client="", owner=key.owner)
        await self._keep(event)

    async def _keep(self, event: AuditEvent) -> None:
        try:
            await self._table.create(f"{micros(event.at)}-{self._entropy(_ID_BYTES).hex()}", event)
        except BusError as error:
            _log.error("audit_not_written", action=event.action, subject=event.subject, error=str(error))

    async def recent(self, limit: int) -> list[AuditEvent]:
        """The newest events, newest first. Raises BusError."""
        rows = await self._table.rows()
        return [rows[key].value for key in sorted(rows, reverse=True)[:limit]]
