"""The notification service: from facts to messages, over the bucket NOTICES.

What is to be told is stored before anything is sent, so it outlives this edge. A message that was sent and whose row
could not be updated is sent again: twice is better than never. One edge at a time writes and sends, by a lease; every
edge looks, so that another one takes over in time. While the broker is away there is neither lease nor bucket: then
each edge tells the loss of the broker itself, from memory.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial

import structlog
from anyio import sleep
from msgspec import Struct, structs

from bus.compare_and_set import update_row
from bus.interface import BusError, RevisionConflict, Table, WebhookDelivery
from edge.core.clock import Clock
from edge.core.concurrency import gather_bounded
from edge.core.error_handling import log_and_continue, translate_errors
from edge.core.leases import Leases
from edge.core.messages import CATALOGUE, one_line
from edge.notify.conditions import ConditionTracker, Findings, HeldCondition, find_conditions
from edge.notify.facts import FactReader
from edge.notify.targets import NotificationFailed, NotificationSender, NotifySettings, NotifyTarget
from edge.notify.texts import TEST_BODY_TEXT, TEST_TITLE_TEXT, render_message, render_notice
from schemas.backoff import Backoff
from schemas.conditions import JOB_FAILED, Condition, Notice, PendingMessage
from schemas.job import Job
from schemas.status import Status
from schemas.texts import Language

BACKOFF = Backoff(30.0, 3600.0)  # between two tries of a message
GIVE_UP = timedelta(days=3)
_WHY_LENGTH_LIMIT = 200
_CONCURRENT_TARGETS = 8
_CONDITIONS, _JOBS = "condition.", "job."

_log = structlog.get_logger()


class TargetResult(Struct, frozen=True):
    """Whether a test message was sent. `error`: why not, without secrets."""

    target: str
    sent: bool
    error: str | None = None


class NotificationServices(Struct, frozen=True, kw_only=True):
    """The parts that the service uses. `senders`: one for each target of the settings."""

    table: Table[Notice]
    facts: FactReader
    leases: Leases
    senders: Mapping[str, NotificationSender]
    clock: Clock
    random: Callable[[], float]


class NotificationService:
    """Tells the targets of the settings what is wrong. Without targets it does nothing."""

    def __init__(self, settings: NotifySettings, services: NotificationServices) -> None:
        self._settings = settings
        self._table, self._facts, self._leases = services.table, services.facts, services.leases
        self._senders, self._clock, self._random = services.senders, services.clock, services.random
        self._tracker = ConditionTracker()
        self._last_sent_at: dict[str, float] = {}
        self._broker_outage: Notice | None = None

    @property
    def targets(self) -> Mapping[str, NotifyTarget]:
        """The targets of the settings, by name."""
        return self._settings.targets

    async def run(self) -> None:
        """Look and send until cancelled."""
        while self._settings.targets:
            with log_and_continue("notification_round_failed"):
                await self.tick()
            await sleep(self._settings.check_every_s)

    async def tick(self) -> None:
        """Look once, store what began and ended, and send what is due."""
        found = find_conditions(await self._facts.read())
        self._tracker.note(found, self._clock())
        try:
            async with self._leases.acquire("notify", "send") as is_held:
                if is_held:
                    await self._store(found)
                    await self._send_due()
            await self._tell_outage(None)
        except BusError as error:
            _log.warning("notifications_delayed", error=str(error))
            outage = next((one for one in found.held if one.condition is Condition.BROKER_NOT_DURABLE), None)
            if outage is not None and any(one.key == outage.key for one in self._tracker.begun(found, self._clock())):
                await self._tell_outage(outage)

    async def open_notices(self) -> list[Notice]:
        """Return the conditions that hold now, the newest first. Raises ProblemError."""
        with translate_errors():
            rows = await self._table.rows(_CONDITIONS)
        notices = (row.value for row in rows.values() if row.value.ended_at is None)
        return sorted(notices, key=lambda notice: notice.began_at, reverse=True)

    async def send_test(self) -> Sequence[TargetResult]:
        """Send one test message to each target."""
        language = self._settings.language
        title, body = TEST_TITLE_TEXT.render(language), TEST_BODY_TEXT.render(language)

        async def send(name: str) -> TargetResult:
            try:
                await self._senders[name].send(title, body)
            except NotificationFailed as error:
                return TargetResult(name, sent=False, error=str(error))
            return TargetResult(name, sent=True)

        calls = [partial(send, name) for name in self._settings.targets]
        return await gather_bounded(calls, _CONCURRENT_TARGETS)

    async def on_state(self, delivery: WebhookDelivery) -> None:
        """Store a notice of a job that failed, for the targets that want it. Idempotent. Raises BusError."""
        job = delivery.record.job
        wanted = [name for name, target in self._settings.targets.items() if _wants_job(target, job)]
        if not wanted or job.error is None:
            return
        at = self._clock()
        notice = Notice(
            condition=JOB_FAILED,
            subject=job.id,
            values={
                "owner": job.owner,
                "endpoint": job.endpoint,
                "code": job.error.code,
                "why": one_line(job.error.message, _WHY_LENGTH_LIMIT),
            },
            began_at=at,
            ended_at=at,
            pending=dict.fromkeys(wanted, PendingMessage()),
        )
        try:
            await self._table.create(f"{_JOBS}{job.owner}.{job.id}.{delivery.revision}", notice)
        except RevisionConflict:
            return  # this state was stored before, by an edge that died before it said so

    # ── what began and ended ─────────────────────────────────────────────────────────────────────────────────────────

    async def _store(self, found: Findings) -> None:
        now = self._clock()
        rows = {key: row.value for key, row in (await self._table.rows(_CONDITIONS)).items()}
        for finding in self._tracker.begun(found, now):
            key = _row_key(finding)
            if key not in rows or rows[key].ended_at is not None:
                await self._table.put(key, self._begin(finding))
        for key, notice in rows.items():
            if notice.ended_at is not None or not self._tracker.has_ended(
                (Condition(notice.condition), notice.subject), found, now
            ):
                continue
            ended = structs.replace(self._end(notice), pending=self._pending_for(Condition(notice.condition)))
            await self._table.put(key, ended)

    def _begin(self, finding: HeldCondition) -> Notice:
        """Log that a condition holds, and return the notice of it."""
        notice = Notice(
            condition=finding.condition,
            subject=finding.subject,
            values={name: one_line(text, _WHY_LENGTH_LIMIT) for name, text in finding.values.items()},
            began_at=self._clock(),
            pending=self._pending_for(finding.condition),
        )
        text = render_notice(notice, Language.EN)
        _log.warning("condition_began", condition=notice.condition, subject=notice.subject, notice=text)
        return notice

    def _end(self, notice: Notice) -> Notice:
        """Log that a condition is gone, and return the notice of that."""
        _log.info("condition_ended", condition=notice.condition, subject=notice.subject)
        return structs.replace(notice, ended_at=self._clock())

    def _pending_for(self, condition: Condition) -> dict[str, PendingMessage]:
        targets = self._settings.targets.items()
        wanting = [name for name, one in targets if one.conditions is None or condition in one.conditions]
        return dict.fromkeys(wanting, PendingMessage())

    # ── sending ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _send_due(self) -> None:
        rows = {key: row.value for key, row in (await self._table.rows()).items()}
        for target in self._settings.targets:
            due = {key: notice for key, notice in rows.items() if self._is_due(notice, target)}
            if due and self._may_send(target):
                await self._send_to(target, due)
        for key, notice in (await self._table.rows()).items():
            await self._tidy(key, notice.value)

    def _is_due(self, notice: Notice, target: str) -> bool:
        message = notice.pending.get(target)
        return message is not None and (message.next_at is None or message.next_at <= self._clock())

    def _may_send(self, target: str) -> bool:
        last = self._last_sent_at.get(target)
        return last is None or not 0 <= self._clock().timestamp() - last < self._settings.interval_s

    async def _send_to(self, target: str, due: Mapping[str, Notice]) -> None:
        """Send one message about everything that is due to a target, then note it in the rows."""
        notices = sorted(due.values(), key=lambda notice: notice.ended_at or notice.began_at)
        self._last_sent_at[target] = self._clock().timestamp()
        is_sent = await self._try_send(target, notices)
        for key, notice in due.items():
            await update_row(self._table, key, self._after_try(target, notice, is_sent=is_sent))

    async def _try_send(self, target: str, notices: Sequence[Notice]) -> bool:
        title, body = render_message([self._localize(notice) for notice in notices], self._settings.language)
        try:
            await self._senders[target].send(title, body)
        except NotificationFailed as error:
            _log.warning("notification_failed", target=target, error=str(error))
            return False
        _log.info("notification_sent", target=target, notices=len(notices))
        return True

    def _localize(self, notice: Notice) -> Notice:
        if self._settings.language is Language.EN or "why" not in notice.values:
            return notice
        return structs.replace(notice, values=notice.values | {"why": CATALOGUE.translate(notice.values["why"])})

    def _after_try(self, target: str, sent: Notice, *, is_sent: bool) -> Callable[[Notice | None], Notice | None]:
        def change(now: Notice | None) -> Notice | None:
            message = now.pending.get(target) if now else None
            if now is None or message is None or now.ended_at != sent.ended_at:
                return None  # another edge, or it has ended in the meantime: that is another message
            pending = {name: one for name, one in now.pending.items() if name != target}
            if not is_sent:
                wait_s = BACKOFF.delay_s(message.failures, self._random())
                pending[target] = PendingMessage(message.failures + 1, self._clock() + timedelta(seconds=wait_s))
            return structs.replace(now, pending=pending)

        return change

    async def _tidy(self, key: str, notice: Notice) -> None:
        """Drop messages to targets that are no longer set, or that no target accepted for days; then the row itself."""
        ended_at = notice.ended_at
        is_late = self._clock() - (ended_at or notice.began_at) > GIVE_UP
        kept = {name: one for name, one in notice.pending.items() if name in self._settings.targets and not is_late}
        if is_late and notice.pending:
            _log.error("notification_given_up", condition=notice.condition, targets=sorted(notice.pending))
        if ended_at is not None and not kept:
            await self._table.delete(key)
        elif kept != notice.pending:
            await update_row(self._table, key, lambda now: now and structs.replace(now, pending=kept))

    async def _tell_outage(self, outage: HeldCondition | None) -> None:
        """Tell that the broker is away, once, and that it is back. Nothing is stored: the store is what is away."""
        told = self._broker_outage
        if (outage is None) == (told is None):
            return
        if outage is not None:
            notice = self._broker_outage = self._begin(outage)
        elif told is not None:
            notice, self._broker_outage = self._end(told), None
        for target in notice.pending:
            await self._try_send(target, [notice])


def _wants_job(target: NotifyTarget, job: Job) -> bool:
    return (
        target.failed_jobs
        and job.status is Status.FAILED
        and job.error is not None
        and (not target.endpoints or job.endpoint in target.endpoints)
        and (not target.codes or job.error.code in target.codes)
    )


def _row_key(finding: HeldCondition) -> str:
    """Return the key of a condition in NOTICES. A subject may hold any character."""
    return f"{_CONDITIONS}{finding.condition}.{hashlib.sha256(finding.subject.encode()).hexdigest()[:16]}"
