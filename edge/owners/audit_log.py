"""The audit log: who did what to which key, host, owner, job, asset or setting.

An event is stored after its action, so that the log tells only what happened. A broker that does not take it within
APPEND_TIMEOUT_S must neither lose it nor hold up the request: the event then waits as a file in the edge's data folder,
and `run` stores it later (docs/decisions/089).
"""

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from pathlib import Path

import msgspec
import structlog
from anyio import move_on_after, sleep, to_thread
from msgspec import Struct

from bus.interface import AuditEntry, AuditStream, BusError
from bus.secret_files import atomic_write, make_private_folder
from edge.core.clock import Clock, Entropy, micros
from edge.core.concurrency import translate_errors
from schemas.credentials import ApiKey, Scope
from schemas.events import DECODE_ERRORS
from schemas.installation import BY_EDGE, BY_UP, AuditAction, AuditEvent
from schemas.settings_schema import SettingSnapshot, describe_changes, take_snapshot

APPEND_TIMEOUT_S = 5.0
SPOOL_INTERVAL_S = 10.0
SCAN_SPAN = 1000  # sequences that are read in one request to the broker
SCAN_LIMIT = 20 * SCAN_SPAN  # sequences that one page of the log looks through
_ID_BYTES = 4
_DETAILS_LIMIT = 200  # entries of one event
_DETAIL_LENGTH_LIMIT = 300  # characters of one entry
_SNAPSHOT_NAME = "settings-at-start.json"
_UNRECORDED_SETTINGS = frozenset({"fd", "broker.monitor"})  # a socket's number; a URL whose path is a secret
_ASSIGNED_SETTINGS = frozenset({"broker.url"})  # another port at every start of `up`, which passes a socket as `fd`

_log = structlog.get_logger()


class AuditFilter(Struct, frozen=True, kw_only=True):
    """The events to read. None and empty texts: any. `since` is inclusive, `until` is not."""

    by: str | None = None
    action: str | None = None
    subject: str | None = None
    owner: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def matches(self, event: AuditEvent) -> bool:
        """Return whether the event is one of those."""
        wanted = ((self.by, event.by), (self.action, event.action), (self.subject, event.subject))
        return (
            all(want is None or want == value for want, value in (*wanted, (self.owner, event.owner)))
            and (self.since is None or event.at >= self.since)
            and (self.until is None or event.at < self.until)
        )


class AuditLog:
    """Writes events to the broker's stream AUDIT and to the process log. `data`: the edge's data folder."""

    def __init__(self, stream: AuditStream, clock: Clock, entropy: Entropy, data: Path) -> None:
        self._stream, self._clock, self._entropy = stream, clock, entropy
        self._spool = data / "audit-spool"
        self._snapshot = data / _SNAPSHOT_NAME

    async def record(  # noqa: PLR0913 - the fields of an event
        self,
        action: AuditAction,
        subject: str,
        *,
        by: str,
        client: str,
        owner: str = "",
        scopes: tuple[Scope, ...] = (),
        details: Mapping[str, str] | None = None,
    ) -> None:
        """Record an event. Takes at most APPEND_TIMEOUT_S and never raises."""
        event = AuditEvent(
            at=self._clock(),
            action=action,
            subject=subject,
            by=by,
            client=client,
            owner=owner,
            scopes=scopes,
            details=_limit_details(details or {}),
        )
        log = _log.info if by in {BY_UP, BY_EDGE} else _log.warning  # every new installation does the former
        log("audit_event_recorded", action=action, subject=subject, by_key=by, client=client, owner=owner)
        await self._keep(event)

    async def key_made_at_start(self, key: ApiKey, by: str) -> None:
        """Record that `by` (BY_UP, BY_EDGE) created a key at start."""
        await self.record(AuditAction.KEY_CREATED, key.id, by=by, client="", owner=key.owner, scopes=key.scopes)

    async def record_settings(self, settings: Struct, defaults: Struct, edge_name: str, secret: bytes) -> None:
        """Record what changed in the settings since this edge's last start; at its first start, since the defaults.

        `secret` keys the digests by which a changed secret is noticed.
        """

        def digest(value: bytes) -> str:
            return hmac.new(secret, value, hashlib.sha256).hexdigest()[:32]

        whole = take_snapshot(settings, digest)
        is_child = "fd" in whole and whole["fd"].shown != "null"
        left_out = _UNRECORDED_SETTINGS | (_ASSIGNED_SETTINGS if is_child else frozenset())
        now = {name: value for name, value in whole.items() if name not in left_out}
        before = await to_thread.run_sync(_read_snapshot, self._snapshot) or take_snapshot(defaults, digest)
        changes = describe_changes({name: value for name, value in before.items() if name not in left_out}, now)
        if not changes:
            return
        await self.record(AuditAction.SETTINGS_CHANGED, edge_name, by=BY_EDGE, client="", details=changes)
        try:
            await to_thread.run_sync(atomic_write, self._snapshot, msgspec.json.encode(now))
        except OSError as error:
            _log.error("settings_snapshot_failed", path=str(self._snapshot), error=str(error))

    async def read(
        self, wanted: AuditFilter, limit: int, before: int | None = None
    ) -> tuple[list[AuditEntry], int | None]:
        """Return at most `limit` entries before sequence `before`, newest first, and where the next page begins.

        A page may be short although there is a next one: a filter looks through SCAN_LIMIT sequences at most. Raises
        ProblemError.
        """
        found: list[AuditEntry] = []
        for _ in range(SCAN_LIMIT // SCAN_SPAN):
            with translate_errors():
                page = await self._stream.page(before, SCAN_SPAN)
            for entry in page.entries:
                if wanted.matches(entry.event):
                    found.append(entry)
                    if len(found) == limit:
                        return found, entry.sequence
            before = page.next_before
            is_past = wanted.since is not None and bool(page.entries)
            is_past = is_past and all(entry.event.at < wanted.since for entry in page.entries if wanted.since)
            if before is None or is_past:
                return found, None
        return found, before

    async def run(self) -> None:
        """Store the events that wait in the spool, again and again until cancelled."""
        while True:
            await self.store_spooled()
            await sleep(SPOOL_INTERVAL_S)

    async def store_spooled(self) -> None:
        """Store the waiting events, oldest first, up to the first that the broker does not take."""
        for path in await to_thread.run_sync(_list_spool, self._spool):
            try:
                event = msgspec.json.decode(await to_thread.run_sync(path.read_bytes), type=AuditEvent)
                await self._stream.append(path.stem, event)
                await to_thread.run_sync(partial(path.unlink, missing_ok=True))
            except BusError as error:
                _log.warning("audit_spool_delayed", waiting_id=path.stem, error=str(error))
                return
            except (OSError, *DECODE_ERRORS) as error:
                _log.error("audit_spool_unreadable", path=str(path), error=str(error))

    async def _keep(self, event: AuditEvent) -> None:
        event_id = f"{micros(event.at)}-{self._entropy(_ID_BYTES).hex()}"
        reason = "timeout"
        with move_on_after(APPEND_TIMEOUT_S, shield=True):  # the client may be gone; the action has happened
            try:
                await self._stream.append(event_id, event)
            except BusError as error:
                reason = str(error)
            else:
                return
        _log.error("audit_write_delayed", action=event.action, subject=event.subject, error=reason)
        try:
            await to_thread.run_sync(_write_spool, self._spool / f"{event_id}.json", msgspec.json.encode(event))
        except OSError as error:
            _log.error("audit_event_lost", audit_event=msgspec.to_builtins(event), error=str(error))


def _limit_details(details: Mapping[str, str]) -> dict[str, str]:
    shown = {name: text[:_DETAIL_LENGTH_LIMIT] for name, text in list(details.items())[:_DETAILS_LIMIT]}
    left_out = len(details) - len(shown)
    return shown | ({"": f"{left_out} more"} if left_out else {})


def _read_snapshot(path: Path) -> dict[str, SettingSnapshot] | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, SettingSnapshot])
    except (OSError, *DECODE_ERRORS):
        return None


def _write_spool(path: Path, content: bytes) -> None:
    make_private_folder(path.parent)
    atomic_write(path, content)


def _list_spool(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"))
