"""The host registry: polled heartbeats and offers, gone hosts, and notices of changes."""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

import structlog
from anyio import sleep
from msgspec import Struct
from msgspec.structs import replace

from bus.interface import Bus, BusError
from edge.core.clock import Clock
from edge.hosts.endpoints import EndpointRegistry
from edge.hosts.pauses import PauseRegistry
from schemas.host import (
    HEARTBEAT_INTERVAL_S,
    HOST_GONE_TIMEOUT_S,
    HostCapabilities,
    HostHeartbeat,
    HostView,
    activity_view,
)
from schemas.job import Claim
from schemas.status import WaitReason

# A task that the runner cannot do, like those that runners report: `task (reason): what to do`.
UNREADABLE_HEARTBEAT = "send heartbeats that this edge can read ({why}): upgrade the edge to the release of that runner"

_log = structlog.get_logger()


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
        self._unreadable: Mapping[str, str] = {}
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
            waits = (UNREADABLE_HEARTBEAT.format(why=self._unreadable[host]),)
            online = HostView(id=host, state="online", endpoints=endpoints, waits=waits)
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
