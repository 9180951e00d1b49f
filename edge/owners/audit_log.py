"""The audit log: each key created, rotated or revoked, each host added or removed, each owner deleted."""

import structlog

from bus.interface import BusError, Table
from edge.core.clock import Clock, Entropy, micros
from schemas.auth import ApiKey, Scope
from schemas.installation import AuditAction, AuditEvent

_ID_BYTES = 4

_log = structlog.get_logger()


class AuditLog:
    """Writes events to the bucket AUDIT, under a key that starts with the time, and to the process log."""

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
        """Record an event. If the broker does not accept it, the event is still in the process log."""
        event = AuditEvent(
            at=self._clock(), action=action, subject=subject, by=by, client=client, owner=owner, scopes=scopes
        )
        _log.warning("audit_event_recorded", action=action, subject=subject, by_key=by, client=client, owner=owner)
        await self._keep(event)

    async def key_made_at_start(self, key: ApiKey, by: str) -> None:
        """Record that `by` (BY_UP, BY_EDGE) created a key at start. Not a warning: every new installation does this."""
        event = AuditEvent(
            at=self._clock(),
            action=AuditAction.KEY_CREATED,
            subject=key.id,
            by=by,
            client="",
            owner=key.owner,
            scopes=key.scopes,
        )
        _log.info("audit_event_recorded", action=event.action, subject=key.id, by_key=by, client="", owner=key.owner)
        await self._keep(event)

    async def _keep(self, event: AuditEvent) -> None:
        try:
            await self._table.create(f"{micros(event.at)}-{self._entropy(_ID_BYTES).hex()}", event)
        except BusError as error:
            _log.error("audit_write_failed", action=event.action, subject=event.subject, error=str(error))

    async def recent(self, limit: int) -> list[AuditEvent]:
        """Return the `limit` newest events, newest first. Raises BusError."""
        rows = await self._table.rows()
        return [rows[key].value for key in sorted(rows, reverse=True)[:limit]]
