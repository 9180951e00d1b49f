"""`/livez`, `/readyz`, `/metrics` and `/v1/notifications`: what operators and their programs watch.

Services count in instruments. The first half of this module reads for each scrape the state that can be read at any
time: the queue, hosts, the broker, certificates and the disk. A part that cannot be read is left out: the broker may
be away just when somebody wants to see the rest.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import structlog
from anyio import move_on_after, to_thread
from litestar import Response, get, post
from msgspec import Struct, field

from bus.health import BrokerBacklog, BrokerStatus
from bus.interface import BusError
from bus.metric_registry import CONTENT_TYPE, MetricSnapshot, render_for_any_key
from edge.core.clock import micros
from edge.core.installation import read_last_backup
from edge.http.auth import NO_AUTH, require_scope
from edge.http.dependencies import AnyRequest, EdgeServices, ServicesDep, get_or_head, record_audit_event
from edge.notify.service import TargetResult
from schemas.certificates import first_certificate, read_certificate
from schemas.credentials import ApiKey, Scope
from schemas.host import HostHeartbeat
from schemas.installation import AuditAction, Notice
from schemas.job import Moment
from schemas.problems import ProblemError
from schemas.version import VERSION

BROKER_TIMEOUT_S = 4.0  # Prometheus waits 10 s for the whole answer
_MICROS_PER_S = 1_000_000

_log = structlog.get_logger()


async def read_for_any_key(services: EdgeServices, snapshot: MetricSnapshot, owner: str | None) -> None:
    """Read what every key may see: the jobs of `owner`, or of all owners for None, hosts, and the broker's store."""
    for key, count in services.index.count_jobs().items():
        if owner in {None, key.owner}:
            snapshot.set("lamplighter_jobs", count, key.endpoint, key.status)
    for view in services.power.host_views(services.hosts.views()):
        snapshot.set("lamplighter_hosts", 1, view.state)
    status = await _read_broker_status(services)
    if status is not None:
        _set_broker_status(snapshot, status)


async def read_for_operator(services: EdgeServices, snapshot: MetricSnapshot) -> None:
    """Read what only a key with the scope `power` may see."""
    snapshot.set("lamplighter_edge_info", 1, VERSION)
    if services.metrics.counts_owners:
        for key, count in services.index.count_jobs().items():
            snapshot.set("lamplighter_owner_jobs", count, key.owner, key.status)
    for host, heartbeat in services.hosts.heartbeats.items():
        _set_heartbeat(snapshot, host, heartbeat, (services.now() - heartbeat.at).total_seconds())
    for view in services.power.host_views(services.hosts.views()):
        snapshot.set("lamplighter_host_up", services.hosts.is_online(view.id), view.id)
    services.power_metrics.read(snapshot)
    await _read_queue(services, snapshot)
    await _read_broker(services, snapshot)
    await to_thread.run_sync(_read_files, services.data_dir, services.certificates, snapshot)


def _set_heartbeat(snapshot: MetricSnapshot, host: str, heartbeat: HostHeartbeat, age_s: float) -> None:
    snapshot.set("lamplighter_host_heartbeat_age_seconds", age_s, host)
    snapshot.set("lamplighter_host_running_jobs", len(heartbeat.running), host)
    snapshot.set("lamplighter_host_busy", heartbeat.is_busy, host)
    for gpu in heartbeat.gpus:
        snapshot.set("lamplighter_host_gpus", 1, host, gpu.fitness)


async def _read_queue(services: EdgeServices, snapshot: MetricSnapshot) -> None:
    now_us = micros(services.now())
    try:
        oldest = await services.index.oldest_queued()
    except ProblemError as error:  # the index is being rebuilt, or its disk is full
        _log.warning("metrics_incomplete", part="queue", error=str(error))
        return
    for endpoint in {key.endpoint for key in services.index.count_jobs()} | oldest.keys():
        waited_us = now_us - oldest[endpoint] if endpoint in oldest else 0
        snapshot.set("lamplighter_queue_oldest_wait_seconds", max(0.0, waited_us / _MICROS_PER_S), endpoint)


async def _read_broker_status(services: EdgeServices) -> BrokerStatus | None:
    if services.bus.health.is_connected:
        try:
            with move_on_after(BROKER_TIMEOUT_S):
                return await services.bus.health.status()
        except BusError as error:
            _log.warning("metrics_incomplete", part="broker", error=str(error))
    return None


def _set_broker_status(snapshot: MetricSnapshot, status: BrokerStatus) -> None:
    snapshot.set("lamplighter_broker_store_used_ratio", status.used_share)
    snapshot.set("lamplighter_broker_store_used_bytes", status.used_bytes)
    if status.limit_bytes is not None:
        snapshot.set("lamplighter_broker_store_limit_bytes", status.limit_bytes)
    if status.is_durable is not None:
        snapshot.set("lamplighter_broker_durable", status.is_durable)


async def _read_broker(services: EdgeServices, snapshot: MetricSnapshot) -> None:
    snapshot.set("lamplighter_broker_connected", services.bus.health.is_connected)
    if not services.bus.health.is_connected:
        return
    try:
        with move_on_after(BROKER_TIMEOUT_S):
            backlog = await services.bus.health.backlog()
            _set_backlog(snapshot, backlog)
            if backlog.broker_time is not None:
                offset_s = (services.now() - backlog.broker_time).total_seconds()
                snapshot.set("lamplighter_edge_clock_offset_seconds", offset_s)
            backed_up_at = await read_last_backup(services.bus.installation_constants)
            if backed_up_at is not None:
                snapshot.set("lamplighter_backup_last_success_timestamp_seconds", backed_up_at.timestamp())
    except BusError as error:
        _log.warning("metrics_incomplete", part="backlog", error=str(error))


def _set_backlog(snapshot: MetricSnapshot, backlog: BrokerBacklog) -> None:
    snapshot.set("lamplighter_broker_pending_messages", backlog.pointers, "jobs")
    snapshot.set("lamplighter_broker_pending_messages", backlog.unchecked_states, "webhook_states")
    snapshot.set("lamplighter_broker_pending_messages", backlog.deliveries, "webhook_deliveries")
    snapshot.set("lamplighter_webhook_outbox_deliveries", backlog.deliveries)
    snapshot.set("lamplighter_webhook_outbox_oldest_age_seconds", backlog.oldest_delivery_s)


def _read_files(data: Path, certificates: Mapping[str, Path], snapshot: MetricSnapshot) -> None:
    """Read the disk and the certificates, which may have been renewed. Blocking."""
    try:
        usage = shutil.disk_usage(data)
        snapshot.set("lamplighter_edge_disk_free_bytes", usage.free)
        snapshot.set("lamplighter_edge_disk_size_bytes", usage.total)
    except OSError as error:
        _log.warning("metrics_incomplete", part="disk", error=str(error))
    for server, path in certificates.items():
        try:
            expires_at = read_certificate(first_certificate(path.read_text())).not_after
        except (OSError, ValueError) as error:  # CertificateUnreadable and UnicodeDecodeError are ValueErrors
            _log.warning("metrics_incomplete", part=f"certificate of the {server}", error=str(error))
            continue
        snapshot.set("lamplighter_certificate_expiry_timestamp_seconds", expires_at.timestamp(), server)


class LivenessView(Struct, frozen=True):
    """The response of a running process."""

    status: str = "ok"


class ReadinessView(Struct, frozen=True):
    """Whether the edge accepts new jobs. `reasons`: why it does not, one text for each; empty if it does.

    `degraded`: faults that do not affect clients yet, such as the failure of one server of a broker cluster. `ailing`
    is the old name of `degraded`, kept for one release. `version`: that of this edge.
    """

    status: str
    reasons: tuple[str, ...] = field(default=(), name="why")
    degraded: tuple[str, ...] = ()
    ailing: tuple[str, ...] = ()
    version: str = VERSION


@get_or_head("/livez", opt={NO_AUTH: True})
async def livez() -> LivenessView:
    """Return 200 while the process runs."""
    return LivenessView()


async def _readiness_problems(services: EdgeServices) -> tuple[str, ...]:
    rebuilding = () if services.index.is_caught_up else ("the list of jobs is still being rebuilt: wait",)
    problem = await services.readiness.problem()
    return rebuilding if problem is None else (problem.detail, *rebuilding)


@get_or_head("/readyz", opt={NO_AUTH: True})
async def readyz(services: ServicesDep) -> Response[ReadinessView]:
    """Return 200 if the edge accepts new jobs, and otherwise 503 with the reasons."""
    reasons = await _readiness_problems(services)
    if reasons:
        return Response(ReadinessView("refusing", reasons), status_code=503)
    degraded = (*services.readiness.degraded, *services.secrets.faults)
    return Response(ReadinessView("ok", degraded=degraded, ailing=degraded), status_code=200)


@get_or_head("/metrics", guards=[require_scope(Scope.HOSTS_READ)], media_type=CONTENT_TYPE)
async def metrics(request: AnyRequest, services: ServicesDep) -> bytes:
    """Return Prometheus metrics: of jobs, hosts, the broker, webhooks and this edge's requests.

    A key with `power` or `admin` sees all of them. Other keys see the jobs of their own owner, hosts by state, and the
    use of the broker's store.
    """
    caller: ApiKey = request.auth
    snapshot = services.metrics.registry.snapshot()
    if not caller.allows(Scope.POWER):
        await read_for_any_key(services, snapshot, caller.owner)
        return render_for_any_key(snapshot)
    await read_for_any_key(services, snapshot, None)
    await read_for_operator(services, snapshot)
    snapshot.set("lamplighter_edge_ready", not await _readiness_problems(services))
    return services.metrics.registry.render(snapshot)


class NoticeView(Struct, frozen=True, kw_only=True):
    """A condition that holds. `pending`: the targets that were not told yet."""

    condition: str
    subject: str
    values: dict[str, str]
    began_at: Moment
    pending: list[str]


class NotificationsView(Struct, frozen=True):
    """The conditions that hold, newest first, and the names of the targets."""

    notices: list[NoticeView]
    targets: list[str]


class NotificationTest(Struct, frozen=True):
    """The outcome of a test for each target."""

    results: list[TargetResult]


def _to_notice_view(notice: Notice) -> NoticeView:
    return NoticeView(
        condition=notice.condition,
        subject=notice.subject,
        values=notice.values,
        began_at=notice.began_at,
        pending=sorted(notice.pending),
    )


@get("/v1/notifications", guards=[require_scope(Scope.ADMIN)])
async def list_notifications(services: ServicesDep) -> NotificationsView:
    """List the conditions that hold and that a target gets. Without targets, no condition is checked."""
    notices = await services.notifications.open_notices()
    return NotificationsView([_to_notice_view(notice) for notice in notices], sorted(services.notifications.targets))


@post("/v1/notifications/test", status_code=200, guards=[require_scope(Scope.ADMIN)])
async def send_test_message(request: AnyRequest, services: ServicesDep) -> NotificationTest:
    """Send a test message to each target, and return which were sent and why others were not."""
    results = list(await services.notifications.send_test())
    details = {result.target: "sent" if result.sent else result.error or "" for result in results}
    await record_audit_event(request, services, AuditAction.NOTIFICATIONS_TESTED, "", details=details)
    return NotificationTest(results)


ROUTES = (
    livez,
    readyz,
    metrics,
    list_notifications,
    send_test_message,
)
