"""The notification service: from facts to messages, over the bucket NOTICES.

Facts about the conditions are read from the broker, the index, heartbeats, power records and disks.

What is to be told is stored before anything is sent, so it outlives this edge. A message that was sent and whose row
could not be updated is sent again: twice is better than never. One edge at a time writes and sends, by a lease; every
edge looks, so that another one takes over in time. While the broker is away there is neither lease nor bucket: then
each edge tells the loss of the broker itself, from memory.
"""

import hashlib
import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path

import structlog
from anyio import sleep, to_thread
from msgspec import Struct, structs

from bus.compare_and_set import update_row
from bus.interface import Bus, BusError, RevisionConflict, Table, WebhookDelivery
from edge.core.clock import Clock, micros
from edge.core.concurrency import gather_bounded, log_and_continue, translate_errors
from edge.core.installation import Leases, read_last_backup
from edge.core.messages import CATALOGUE, one_line
from edge.hosts.registry import HostRegistry
from edge.index.index import JobIndex
from edge.notify.conditions import (
    TEST_BODY_TEXT,
    TEST_TITLE_TEXT,
    ConditionTracker,
    EndpointLoad,
    Facts,
    Findings,
    HeldCondition,
    HostFigures,
    find_conditions,
    render_message,
    render_notice,
)
from edge.notify.targets import NotificationFailed, NotificationSender, NotifySettings, NotifyTarget
from edge.power.controller import PowerController
from schemas.backoff import Backoff
from schemas.certificates import first_certificate, read_certificate
from schemas.host import HostHeartbeat
from schemas.host_config import AnyHostConfig
from schemas.installation import JOB_FAILED, THRESHOLDS, Condition, Notice, PendingMessage
from schemas.job import Job, Status
from schemas.power import PowerRecord, PowerState
from schemas.texts import Language

_QUEUE_WINDOW = timedelta(seconds=THRESHOLDS[Condition.QUEUE_GROWING].window_s)
_FAILURE_WINDOW = timedelta(seconds=THRESHOLDS[Condition.FAILURE_RATE].window_s)
_WAKE_WINDOW = timedelta(seconds=THRESHOLDS[Condition.WAKE_FAILED].window_s)
_CRITICAL_FITNESS = frozenset({"unhealthy", "lost"})

_log = structlog.get_logger()


class FactSources(Struct, frozen=True, kw_only=True):
    """The sources of the facts. `certificates` and `disks`: files and folders, by the name in messages."""

    bus: Bus
    index: JobIndex
    hosts: HostRegistry
    power: PowerController
    declared: Mapping[str, AnyHostConfig]
    certificates: Mapping[str, Path]
    disks: Mapping[str, Path]
    clock: Clock
    allow_unsynced: bool = False


class FactReader:
    """Reads the facts of one edge. It remembers how long queues were, and since when hosts are idle."""

    def __init__(self, sources: FactSources) -> None:
        self._from = sources
        self._started_at = sources.clock()
        self._queues: deque[tuple[datetime, dict[str, int]]] = deque()
        self._idle_since: dict[str, datetime] = {}

    async def read(self) -> Facts:
        """Return the facts now. What cannot be read is unknown; never raises for the broker or a disk."""
        problem, used = await self._read_broker()
        return Facts(
            broker_problem=problem,
            store_used=used,
            endpoints=await self._read_endpoints() if self._from.index.is_caught_up else None,
            hosts=self._read_hosts() if self._from.bus.health.is_connected else None,
            webhooks_wait_s=await self._read_webhooks(),
            certificates_left_s=await to_thread.run_sync(self._read_certificates),
            disks_free=await to_thread.run_sync(self._read_disks),
            backup_age_s=await self._read_backup(),
        )

    async def _read_broker(self) -> tuple[str, float | None]:
        health = self._from.bus.health
        if not health.is_connected:
            return health.fault or "it does not answer", None
        try:
            status = await health.status()
        except BusError as error:
            return str(error), None
        if status.write_failed:
            return "its disk did not accept a write, and it stores nothing until it is restarted", status.used_share
        if status.is_durable is not True and not self._from.allow_unsynced:
            return "it does not sync every write", status.used_share
        return "", status.used_share

    async def _read_endpoints(self) -> dict[str, EndpointLoad]:
        now = self._from.clock()
        figures = await self._from.index.endpoint_figures(micros(now - _FAILURE_WINDOW))
        before = self._queued_before(now)
        self._queues.append((now, {name: one.queued for name, one in figures.items()}))
        return {
            name: EndpointLoad(
                queued=one.queued,
                queued_before=None if before is None else before.get(name, 0),
                oldest_wait_s=0.0 if one.oldest_us is None else (micros(now) - one.oldest_us) / 1e6,
                ended=one.ended,
                failed=one.failed,
            )
            for name, one in figures.items()
        }

    def _queued_before(self, now: datetime) -> dict[str, int] | None:
        """Return the newest counts that are at least a window old; None before there are any."""
        while len(self._queues) > 1 and now - self._queues[1][0] >= _QUEUE_WINDOW:
            self._queues.popleft()
        is_old = bool(self._queues) and now - self._queues[0][0] >= _QUEUE_WINDOW
        return self._queues[0][1] if is_old else None

    def _read_hosts(self) -> dict[str, HostFigures]:
        now, heartbeats, records = self._from.clock(), self._from.hosts.heartbeats, self._from.power.records()
        self._note_idle(now, heartbeats, records)
        return {
            host: self._host_facts(host, now, heartbeats.get(host), records.get(host))
            for host in sorted(heartbeats.keys() | records.keys())
        }

    def _note_idle(
        self, now: datetime, heartbeats: Mapping[str, HostHeartbeat], records: Mapping[str, PowerRecord]
    ) -> None:
        idle = {
            host
            for host, record in records.items()
            if record.state is PowerState.ONLINE and _is_idle(heartbeats.get(host))
        }
        self._idle_since = {host: self._idle_since.get(host, now) for host in idle}

    def _host_facts(
        self, host: str, now: datetime, heartbeat: HostHeartbeat | None, record: PowerRecord | None
    ) -> HostFigures:
        since, config = self._idle_since.get(host), self._from.declared.get(host)
        gpus = heartbeat.gpus if heartbeat else ()
        return HostFigures(
            fault=record.why if record and record.state is PowerState.FAULT else None,
            wake_failure=None if record is None else _find_failed_wake(record, now),
            bad_gpus=tuple(f"{gpu.name} ({gpu.uuid})" for gpu in gpus if gpu.fitness in _CRITICAL_FITNESS),
            idle_s=(now - since).total_seconds() if since else None,
            idle_limit_s=max(config.idle_after, config.min_on) if config else None,
            clock_skew_s=(heartbeat.at - now).total_seconds() if heartbeat else 0.0,
        )

    async def _read_webhooks(self) -> float | None:
        try:
            return (await self._from.bus.health.backlog()).oldest_delivery_s
        except BusError:
            return None

    def _read_certificates(self) -> dict[str, float]:
        now, left = self._from.clock(), {}
        for name, path in self._from.certificates.items():
            try:
                info = read_certificate(first_certificate(path.read_text()))
            except (OSError, ValueError) as error:
                _log.warning("certificate_unreadable", path=str(path), error=str(error))
                continue
            left[name] = (info.not_after - now).total_seconds()
        return left

    def _read_disks(self) -> dict[str, float]:
        free = {}
        for name, path in self._from.disks.items():
            try:
                usage = shutil.disk_usage(path)
            except OSError as error:
                _log.warning("disk_usage_unreadable", path=str(path), error=str(error))
                continue
            free[name] = usage.free / max(1, usage.total)
        return free

    async def _read_backup(self) -> float | None:
        """Return the age of the last backup; before the first one, the time since this edge started."""
        try:
            last = await read_last_backup(self._from.bus.installation_constants)
        except BusError:
            return None
        return (self._from.clock() - (last or self._started_at)).total_seconds()


def _is_idle(heartbeat: HostHeartbeat | None) -> bool:
    return heartbeat is not None and not heartbeat.is_busy


def _find_failed_wake(record: PowerRecord, now: datetime) -> str | None:
    """Return why the last wake of the window failed: it ended in a fault, or in a power cycle."""
    for before, after in reversed(list(pairwise(record.history))):
        if now - after.at > _WAKE_WINDOW:
            return None
        is_cycle = after.state is PowerState.STOPPING and record.failed_boots > 0
        if before.state is PowerState.WAKING and (is_cycle or after.state is PowerState.FAULT):
            return after.why
        if after.state is PowerState.ONLINE:
            return None
    return None


SEND_BACKOFF = Backoff(30.0, 3600.0)  # between two tries of a message
SEND_TIME_LIMIT = timedelta(days=3)  # then a message is given up
_WHY_LENGTH_LIMIT = 200
_CONCURRENT_TARGETS = 8
_CONDITIONS, _JOBS = "condition.", "job."


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
                wait_s = SEND_BACKOFF.delay_s(message.failures, self._random())
                pending[target] = PendingMessage(message.failures + 1, self._clock() + timedelta(seconds=wait_s))
            return structs.replace(now, pending=pending)

        return change

    async def _tidy(self, key: str, notice: Notice) -> None:
        """Drop messages to targets that are no longer set, or that no target accepted for days; then the row itself."""
        ended_at = notice.ended_at
        is_late = self._clock() - (ended_at or notice.began_at) > SEND_TIME_LIMIT
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
