"""Read what this edge knows about the conditions: from the broker, the index, heartbeats, power records and disks."""

import shutil
from collections import deque
from collections.abc import Mapping
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import structlog
from anyio import to_thread
from msgspec import Struct

from bus.interface import Bus, BusError
from edge.core.clock import Clock, micros
from edge.core.installation import read_last_backup
from edge.hosts.registry import HostRegistry
from edge.index.index import JobIndex
from edge.notify.conditions import EndpointLoad, Facts, HostFigures
from edge.power.controller import PowerController
from schemas.certificates import first_certificate, read_certificate
from schemas.conditions import THRESHOLDS, Condition
from schemas.host import HostHeartbeat
from schemas.host_config import AnyHostConfig
from schemas.power import PowerRecord, PowerState

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
