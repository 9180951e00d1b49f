"""The hosts as this edge sees them: polled heartbeats and offers, pauses, notices of changes, and samples over time."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import structlog
from anyio import CancelScope, Lock, sleep, to_thread
from msgspec import Struct
from msgspec.structs import replace

from bus.interface import Bus, BusError, RevisionConflict, RowUnreadable
from bus.secret_files import atomic_write
from edge.core.clock import Clock
from edge.hosts.endpoints import EndpointRegistry
from schemas.host import (
    HEARTBEAT_INTERVAL_S,
    HOST_GONE_TIMEOUT_S,
    HostCapabilities,
    HostHeartbeat,
    HostView,
    activity_view,
    read_runner_version,
)
from schemas.installation import Pause, endpoint_pause_key, maintenance_key
from schemas.job import Claim, Moment, WaitReason

_log = structlog.get_logger()


class PauseRegistry:
    """The pauses of all edges. Those that this edge sets or ends are known at once, others after `refresh`."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._table = bus.pauses
        self._clock = clock
        self._pauses: dict[str, Pause] = {}
        self._lock = Lock()  # a read that began before a write of this edge must not replace what was written

    async def refresh(self) -> None:
        """Read the rows, which another edge may have changed. Raises BusError."""
        async with self._lock:
            await self._read()

    async def _read(self) -> None:
        self._pauses = {key: row.value for key, row in (await self._table.rows()).items()}

    def of_endpoint(self, endpoint: str) -> Pause | None:
        """Return the pause of an endpoint; None if it is not paused."""
        return self._pauses.get(endpoint_pause_key(endpoint))

    def of_host(self, host: str) -> Pause | None:
        """Return since when and by whom a host is in maintenance; None if it is not."""
        return self._pauses.get(maintenance_key(host))

    @property
    def hosts_in_maintenance(self) -> frozenset[str]:
        """The hosts in maintenance, also those that were never seen."""
        prefix = maintenance_key("")
        return frozenset(key.removeprefix(prefix) for key in self._pauses if key.startswith(prefix))

    async def pause_endpoint(self, endpoint: str, by: str) -> None:
        """Pause an endpoint. One that is paused already stays so. Raises BusError."""
        await self._create(endpoint_pause_key(endpoint), by)

    async def resume_endpoint(self, endpoint: str) -> None:
        """End the pause of an endpoint, if it is paused. Raises BusError."""
        await self._delete(endpoint_pause_key(endpoint))

    async def start_maintenance(self, host: str, by: str) -> None:
        """Put a host into maintenance. One that is in maintenance already stays so. Raises BusError."""
        await self._create(maintenance_key(host), by)

    async def end_maintenance(self, host: str) -> None:
        """End the maintenance of a host, if it is in maintenance. Raises BusError."""
        await self._delete(maintenance_key(host))

    async def _create(self, key: str, by: str) -> None:
        async with self._lock:
            with suppress(RevisionConflict):  # the first pause tells since when
                await self._table.create(key, Pause(self._clock(), by))
            await self._read()

    async def _delete(self, key: str) -> None:
        async with self._lock:
            await self._table.delete(key)
            await self._read()


# A task that the runner cannot do, like those that runners report: `task (reason): what to do`.
UNREADABLE_HEARTBEAT = "send heartbeats that this edge can read ({why}): {fix}"
UPGRADE_EDGE = "upgrade the edge to the release of that runner"


class HostNotice(Struct, frozen=True):
    """A change of a host that clients are notified of. `kind`: a key of `messages.NOTICES`.

    `wake_s`: usual seconds to wake the host; None if not measured.
    """

    kind: str
    host: str
    at: datetime
    wake_s: float | None = None


class WakeForecast(NamedTuple):
    """Why jobs of an endpoint wait for a host that is not online.

    `wake_s`: usual seconds to wake it; None if not measured. `remaining_s`: those left of the current wake. `blocked`:
    why there is no machine for it, in the words of its power driver.
    """

    reason: WaitReason
    host: str
    wake_s: float | None
    remaining_s: float | None
    blocked: str = ""


QueuedJobCounter = Callable[[Iterable[str]], int]  # of the jobs that wait in these pools


class HostRegistry:
    """The hosts as last polled, and the pauses. `period_s`: seconds between polls."""

    def __init__(
        self,
        bus: Bus,
        endpoints: EndpointRegistry,
        clock: Clock,
        count_queued: QueuedJobCounter,
        period_s: float = HEARTBEAT_INTERVAL_S,
    ) -> None:
        self._bus = bus
        self._endpoints = endpoints
        self._clock = clock
        self._count_queued = count_queued
        self._period_s = period_s
        self._heartbeats: dict[str, HostHeartbeat] = {}
        self._unreadable: Mapping[str, RowUnreadable] = {}
        self._left_at: dict[str, datetime] = {}
        self._gone_since: dict[tuple[str, str], datetime] = {}
        self._subscribers: set[Callable[[HostNotice], object]] = set()
        self._has_polled = False
        self.pauses = PauseRegistry(bus, clock)

    @property
    def heartbeats(self) -> Mapping[str, HostHeartbeat]:
        """The last heartbeat of each online host, by host."""
        return self._heartbeats

    def is_online(self, host: str) -> bool:
        """Return whether the host sends heartbeats, also if this edge cannot read them."""
        return host in self._heartbeats or host in self._unreadable

    async def run(self) -> None:
        """Poll until cancelled; retry while the broker is unreachable."""
        while True:
            try:
                await self.refresh()
            except BusError as error:
                _log.warning("host_poll_failed", error=str(error))
            await sleep(self._period_s)

    async def refresh(self) -> None:
        """Read PAUSES, HOSTS, then OFFERS, and notify listeners of changes. Raises BusError.

        A host writes them in the opposite order, so every host that is online has its endpoints.
        """
        await self.pauses.refresh()
        rows = await self._bus.heartbeats.rows()
        await self._endpoints.refresh()
        before, self._heartbeats = self._heartbeats, {host: row.value for host, row in rows.items()}
        unreadable_before, self._unreadable = self._unreadable, rows.unreadable
        left = [host for host in before.keys() | unreadable_before.keys() if not self.is_online(host)]
        joined = [
            host for host in rows.keys() | rows.unreadable.keys() if host not in before.keys() | unreadable_before
        ]
        at = self._clock()
        self._left_at |= dict.fromkeys(left, at)
        if self._has_polled:
            changes = [*(("host_offline", host) for host in left), *(("host_online", host) for host in joined)]
            for kind, host in sorted([*changes, *_host_changes(before, self._heartbeats)]):
                self.notify(HostNotice(kind, host, at))
        self._has_polled = True

    def subscribe(self, listener: Callable[[HostNotice], object]) -> Callable[[], None]:
        """Call `listener` with every notice; return a function that ends this. `listener` must not block."""
        self._subscribers.add(listener)
        return lambda: self._subscribers.discard(listener)

    def notify(self, notice: HostNotice) -> None:
        """Call every listener with `notice`."""
        for listener in tuple(self._subscribers):
            listener(notice)

    def gone_for(self, claim: Claim) -> timedelta | None:
        """Return for how long the claim's incarnation has been gone; None while it may be alive.

        Gone: HOSTS does not have the host, or has another incarnation of it. Absence counts only after this edge has
        been connected for HOST_GONE_TIMEOUT_S without interruption. After an interruption the time starts at zero. A
        heartbeat that cannot be read may be of any incarnation; that of a process that is gone expires.
        """
        name = (claim.host, claim.incarnation)
        heartbeat = self._heartbeats.get(claim.host)
        is_same = heartbeat is not None and heartbeat.incarnation == claim.incarnation
        is_alive = is_same or claim.host in self._unreadable
        if is_alive or not self._has_polled or self._bus.health.uptime_s() < HOST_GONE_TIMEOUT_S:
            self._gone_since.pop(name, None)
            return None
        now = self._clock()
        return now - self._gone_since.setdefault(name, now)

    def views(self, owner: str | None = None) -> tuple[HostView, ...]:
        """Return all known hosts. Of their running jobs, show those of `owner` only, or all for None."""
        offers = {offer.host: offer for offer in self._endpoints.host_capabilities()}
        return tuple(
            self._view(host, self._heartbeats.get(host), offers.get(host), owner)
            for host in sorted(offers.keys() | self._heartbeats.keys() | self._unreadable.keys())
        )

    def view(self, host: str, owner: str | None = None) -> HostView | None:
        """Return one host of `views`, or None if it is unknown."""
        return next((view for view in self.views(owner) if view.id == host), None)

    def _view(
        self, host: str, heartbeat: HostHeartbeat | None, offer: HostCapabilities | None, owner: str | None
    ) -> HostView:
        endpoints = tuple(endpoint.name for endpoint in offer.endpoints) if offer else ()
        if host in self._unreadable:
            error = self._unreadable[host]
            version = read_runner_version(error.data)
            fix = f"{UPGRADE_EDGE} ({version})" if version else UPGRADE_EDGE
            waits = (UNREADABLE_HEARTBEAT.format(why=error.why, fix=fix),)
            online = HostView(id=host, state="online", endpoints=endpoints, version=version, waits=waits)
            return replace(online, labels=offer.labels, unmet=offer.unmet) if offer else online
        if heartbeat is None:
            since = self._left_at.get(host, offer.at if offer else None)
            off = HostView(id=host, state="off", since=since, endpoints=endpoints)
            return replace(off, gpus=offer.gpus, labels=offer.labels, unmet=offer.unmet) if offer else off
        return HostView(
            id=host,
            state=_host_state(heartbeat),
            since=heartbeat.since,
            incarnation=heartbeat.incarnation,
            endpoints=endpoints,
            engine=heartbeat.engine or None,
            engine_away=heartbeat.engine_away,
            run_as=heartbeat.run_as,
            isolation=heartbeat.isolation,
            runtimes=heartbeat.runtimes,
            version=heartbeat.version,
            images=heartbeat.images,
            volumes=heartbeat.volumes,
            injection=heartbeat.injection,
            gpus=heartbeat.gpus,
            gpus_assigned=heartbeat.gpus_assigned,
            secrets_on_disk=heartbeat.secrets_on_disk,
            warm=heartbeat.warm,
            waits=heartbeat.blocked_work,
            labels=offer.labels if offer else {},
            unmet=offer.unmet if offer else {},
            unschedulable=heartbeat.unschedulable,
            cannot=heartbeat.unschedulable,
            jobs=tuple(run.id for run in heartbeat.running if owner in (None, run.owner)),
            busy=activity_view(
                heartbeat.activity, self._count_queued({e.effective_pool for e in offer.endpoints} if offer else ())
            ),
        )

    def has_online_host(self, endpoint: str) -> bool:
        """Return whether a host that offers `endpoint` is online."""
        return any(map(self.is_online, self._endpoints.hosts_offering(endpoint)))


def _host_state(heartbeat: HostHeartbeat) -> str:
    return "draining" if heartbeat.draining else "online"


def _host_changes(before: dict[str, HostHeartbeat], after: dict[str, HostHeartbeat]) -> Iterable[tuple[str, str]]:
    """Yield kind and host of each change of a host between two polls that both read its heartbeat."""
    for host in after.keys() & before.keys():
        if before[host].draining != after[host].draining:
            yield "paused" if after[host].draining else "resumed", host
        healthy = _are_gpus_healthy(before[host]), _are_gpus_healthy(after[host])
        if healthy[0] != healthy[1]:
            yield "gpu_recovered" if healthy[1] else "gpu_unhealthy", host


def _are_gpus_healthy(heartbeat: HostHeartbeat) -> bool:
    return all(gpu.fitness not in {"unhealthy", "lost"} for gpu in heartbeat.gpus)


SampleWindow = Literal["1h", "24h", "7d"]
SAMPLE_INTERVAL_S = 15.0
SAMPLES_SAVE_INTERVAL_S = 300.0
SAMPLED_HOSTS_LIMIT = 200  # hosts with samples; the one that was last seen longest ago gives way
_GPUS_LIMIT = 16


class _Ring(NamedTuple):
    interval_s: float
    size: int


_RINGS: dict[SampleWindow, _Ring] = {
    "1h": _Ring(SAMPLE_INTERVAL_S, 240),
    "24h": _Ring(300.0, 288),
    "7d": _Ring(1800.0, 336),
}


class HostGpuSample(Struct, frozen=True, omit_defaults=True):
    """One GPU at one time. Null: not reported."""

    uuid: str
    utilization: int | None = None
    memory_used_mb: int | None = None
    memory_total_mb: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None


class HostSample(Struct, frozen=True):
    """One host at one time: its state, the number of its running jobs, and its GPUs."""

    at: Moment
    state: Literal["online", "draining"]
    jobs: int
    gpus: tuple[HostGpuSample, ...] = ()


class SampleSeries(NamedTuple):
    """Samples, oldest first, and the time that each stands for."""

    interval_s: float
    samples: tuple[HostSample, ...]


class HostSamples:
    """Samples of the hosts of this edge. `path`: the file that keeps them; it may be lost without harm."""

    def __init__(self, hosts: HostRegistry, path: Path, clock: Clock) -> None:
        self._hosts = hosts
        self._path = path
        self._clock = clock
        self._rings: dict[str, dict[SampleWindow, deque[HostSample]]] = {}

    def series(self, host: str, window: SampleWindow) -> SampleSeries:
        """Return the samples of a host in the last hour, day or week; none for an unknown host."""
        ring = _RINGS[window]
        since = self._clock().timestamp() - ring.interval_s * ring.size
        samples = self._rings.get(host, {}).get(window, ())
        return SampleSeries(ring.interval_s, tuple(s for s in samples if s.at.timestamp() >= since))

    async def run(self) -> None:
        """Load the file, then sample until cancelled, and save now and then and at the end."""
        await to_thread.run_sync(self._load)
        saved_at = self._clock()
        try:
            while True:
                self.sample(self._hosts.heartbeats.values())
                await sleep(SAMPLE_INTERVAL_S)
                if (self._clock() - saved_at).total_seconds() >= SAMPLES_SAVE_INTERVAL_S:
                    saved_at = self._clock()
                    await self._save()
        finally:
            with CancelScope(shield=True):
                await self._save()

    def sample(self, heartbeats: Iterable[HostHeartbeat]) -> None:
        """Add one sample of each host to the rings in which its next sample is due."""
        now = self._clock()
        for heartbeat in heartbeats:
            rings = self._rings.pop(heartbeat.host, None) or {
                window: deque(maxlen=ring.size) for window, ring in _RINGS.items()
            }
            self._rings[heartbeat.host] = rings  # the last one: it was seen last
            sample = _make_sample(heartbeat, now)
            for window, ring in _RINGS.items():
                last = rings[window][-1].at if rings[window] else None
                if last is None or (now - last).total_seconds() >= ring.interval_s - SAMPLE_INTERVAL_S / 2:
                    rings[window].append(sample)
        while len(self._rings) > SAMPLED_HOSTS_LIMIT:
            del self._rings[next(iter(self._rings))]

    def _load(self) -> None:
        try:
            stored = msgspec.json.decode(self._path.read_bytes(), type=dict[str, dict[SampleWindow, list[HostSample]]])
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            _log.warning("host_samples_unreadable", path=str(self._path), error=str(error))
            return
        for host, rings in stored.items():
            self._rings[host] = {
                window: deque(rings.get(window, ()), maxlen=ring.size) for window, ring in _RINGS.items()
            }

    async def _save(self) -> None:
        data = msgspec.json.encode(
            {host: {window: list(samples) for window, samples in rings.items()} for host, rings in self._rings.items()}
        )
        try:
            await to_thread.run_sync(atomic_write, self._path, data)
        except OSError as error:  # a full disk: the curves are not worth more than that
            _log.warning("host_samples_not_saved", error=str(error))


def _make_sample(heartbeat: HostHeartbeat, now: datetime) -> HostSample:
    gpus = tuple(
        HostGpuSample(
            uuid=gpu.uuid,
            utilization=gpu.utilization,
            memory_used_mb=None
            if gpu.memory_total_mb is None or gpu.memory_free_mb is None
            else gpu.memory_total_mb - gpu.memory_free_mb,
            memory_total_mb=gpu.memory_total_mb,
            temperature_c=gpu.temperature_c,
            power_w=gpu.power_w,
        )
        for gpu in heartbeat.gpus[:_GPUS_LIMIT]
    )
    return HostSample(now, "draining" if heartbeat.draining else "online", len(heartbeat.running), gpus)
