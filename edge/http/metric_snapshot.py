"""The state behind one scrape of `/metrics`: the queue, hosts, the broker, certificates and the disk.

A part that cannot be read is left out: the broker may be away just when somebody wants to see the rest.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import structlog
from anyio import move_on_after, to_thread

from bus.health import BrokerBacklog, BrokerStatus
from bus.interface import BusError
from bus.metric_registry import MetricSnapshot
from edge.core.clock import micros
from edge.core.installation import read_last_backup
from edge.http.dependencies import EdgeServices
from schemas.certificates import first_certificate, read_certificate
from schemas.host import HostHeartbeat
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
