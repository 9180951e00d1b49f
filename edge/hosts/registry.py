"""The host registry: polled heartbeats and offers, gone hosts, notices of changes, and why a job waits for a host."""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import NamedTuple

import structlog
from anyio import sleep
from msgspec import Struct

from bus.interface import Bus, BusError
from edge.core.clock import Clock
from edge.hosts.endpoints import EndpointRegistry
from schemas.host import (
    HEARTBEAT_INTERVAL_S,
    HOST_GONE_TIMEOUT_S,
    HostCapabilities,
    HostHeartbeat,
    HostView,
    activity_view,
)
from schemas.job import Claim, Job
from schemas.status import WaitReason, most_relevant_reason

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

    `wake_s`: usual seconds to wake it; None if not measured. `remaining_s`: those left of the current wake.
    """

    reason: WaitReason
    host: str
    wake_s: float | None
    remaining_s: float | None


WakeForecastSource = Callable[[str], WakeForecast | None]
QueuedJobCounter = Callable[[Iterable[str]], int]
PowerDriverCheck = Callable[[str], bool]


class HostRegistry:
    """The hosts as last polled. `period_s`: seconds between polls."""

    def __init__(
        self, bus: Bus, endpoints: EndpointRegistry, clock: Clock, period_s: float = HEARTBEAT_INTERVAL_S
    ) -> None:
        self._bus = bus
        self._endpoints = endpoints
        self._clock = clock
        self._period_s = period_s
        self._heartbeats: dict[str, HostHeartbeat] = {}
        self._left_at: dict[str, datetime] = {}
        self._gone_since: dict[tuple[str, str], datetime] = {}
        self._subscribers: set[Callable[[HostNotice], object]] = set()
        self._wake_forecast: WakeForecastSource = _no_wake_forecast
        self._has_power_driver: PowerDriverCheck = _no_power_driver
        self._count_queued: QueuedJobCounter = _no_queued_jobs
        self._has_polled = False

    def set_power_source(self, wake_forecast: WakeForecastSource, has_power_driver: PowerDriverCheck) -> None:
        """Set the functions that forecast a wake for an endpoint, and that tell which hosts have a power driver."""
        self._wake_forecast = wake_forecast
        self._has_power_driver = has_power_driver

    def set_queue_counter(self, count_queued: QueuedJobCounter) -> None:
        """Set the function that counts the waiting jobs of pools."""
        self._count_queued = count_queued

    async def run(self) -> None:
        """Poll until cancelled; retry while the broker is unreachable."""
        while True:
            try:
                await self.refresh()
            except BusError as error:
                _log.warning("host_poll_failed", error=str(error))
            await sleep(self._period_s)

    async def refresh(self) -> None:
        """Read HOSTS and OFFERS, and notify listeners of changes. Raises BusError."""
        await self._endpoints.refresh()
        present = {host: row.value for host, row in (await self._bus.heartbeats.rows()).items()}
        before, self._heartbeats = self._heartbeats, present
        at = self._clock()
        for host in before.keys() - present.keys():
            self._left_at[host] = at
        if self._has_polled:
            for kind, host in sorted(_host_changes(before, present)):
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
        been connected for HOST_GONE_TIMEOUT_S without interruption. After an interruption the time starts at zero.
        """
        name = (claim.host, claim.incarnation)
        heartbeat = self._heartbeats.get(claim.host)
        is_alive = heartbeat is not None and heartbeat.incarnation == claim.incarnation
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
            for host in sorted(offers.keys() | self._heartbeats.keys())
        )

    def view(self, host: str, owner: str | None = None) -> HostView | None:
        """Return one host of `views`, or None if it is unknown."""
        return next((view for view in self.views(owner) if view.id == host), None)

    def _view(
        self, host: str, heartbeat: HostHeartbeat | None, offer: HostCapabilities | None, owner: str | None
    ) -> HostView:
        endpoints = tuple(endpoint.name for endpoint in offer.endpoints) if offer else ()
        if heartbeat is None:
            since = self._left_at.get(host, offer.at if offer else None)
            return HostView(id=host, state="off", since=since, endpoints=endpoints, gpus=offer.gpus if offer else ())
        return HostView(
            id=host,
            state=_host_state(heartbeat),
            since=heartbeat.since,
            incarnation=heartbeat.incarnation,
            endpoints=endpoints,
            engine=heartbeat.engine or None,
            engine_away=heartbeat.engine_away,
            run_as=heartbeat.run_as,
            injection=heartbeat.injection,
            gpus=heartbeat.gpus,
            warm=heartbeat.warm,
            waits=heartbeat.blocked_work,
            unschedulable=heartbeat.unschedulable,
            cannot=heartbeat.unschedulable,
            jobs=tuple(run.id for run in heartbeat.running if owner in (None, run.owner)),
            busy=activity_view(
                heartbeat.activity, self._count_queued({e.effective_pool for e in offer.endpoints} if offer else ())
            ),
        )

    def wait_reason(self, job: Job, *, in_window: bool) -> WaitReason:
        """Return the most relevant reason why a scheduled or queued job waits."""
        now = self._clock()
        own = {
            WaitReason.AWAITING_INPUT: bool(job.missing),
            WaitReason.FETCHING_INPUT: bool(job.pending_urls),
            WaitReason.NOT_BEFORE: job.not_before is not None and job.not_before > now,
            WaitReason.BACKOFF: job.backoff_until is not None and job.backoff_until > now,
            WaitReason.QUOTA: not in_window,
            WaitReason.BEHIND: True,
        }
        true = {reason for reason, holds in own.items() if holds}
        host = self._host_wait_reason(job.endpoint)
        return most_relevant_reason(true | ({host} if host else set())) or WaitReason.BEHIND

    def _host_wait_reason(self, endpoint: str) -> WaitReason | None:
        """Return why no host can start the endpoint now, or None if one can.

        Of several online hosts, the reason of the one closest to starting it. GPU_NONE only if no other host offers
        the endpoint, because another host may have the GPU that this one lacks.
        """
        offering = self._endpoints.hosts_offering(endpoint)
        reasons = {
            host: _unschedulable_reason(self._heartbeats[host], endpoint)
            for host in offering
            if host in self._heartbeats
        }
        if None in reasons.values():
            return None
        with_gpu = [reason for reason in reasons.values() if reason not in {None, WaitReason.GPU_NONE}]
        if with_gpu:
            return max((reason for reason in with_gpu if reason is not None), key=list(WaitReason).index)
        forecast, offline = self._wake_forecast(endpoint), offering - reasons.keys()
        if forecast is not None:
            return forecast.reason
        if not offline:
            return WaitReason.GPU_NONE if reasons else WaitReason.NO_HOST
        return WaitReason.HOST_OFF if any(map(self._has_power_driver, offline)) else WaitReason.HOST_OFF_UNSWITCHED

    def offline_host_names(self, endpoint: str) -> str:
        """Return the names of the hosts that offer `endpoint` and are not online, for a message."""
        return ", ".join(sorted(self._endpoints.hosts_offering(endpoint) - self._heartbeats.keys()))

    def has_online_host(self, endpoint: str) -> bool:
        """Return whether a host that offers `endpoint` is online."""
        return any(host in self._heartbeats for host in self._endpoints.hosts_offering(endpoint))

    def usual_wake_s(self, endpoint: str) -> float | None:
        """Return the usual wake time of the host that jobs of `endpoint` wait for; None if unknown."""
        forecast = self._wake_forecast(endpoint)
        return forecast.wake_s if forecast else None

    def remaining_wake_s(self, endpoint: str) -> float | None:
        """Return the remaining seconds of that wake; None if unknown."""
        forecast = self._wake_forecast(endpoint)
        return forecast.remaining_s if forecast else None

    def candidate_hosts(self, endpoint: str) -> tuple[str, ...]:
        """Return the hosts that may run jobs of `endpoint`: those online, else the one that is woken, else all."""
        offering = sorted(self._endpoints.hosts_offering(endpoint))
        online = tuple(host for host in offering if host in self._heartbeats)
        forecast = None if online else self._wake_forecast(endpoint)
        return online or ((forecast.host,) if forecast else tuple(offering))


def _no_wake_forecast(_: str) -> None:
    """Return None: no host has a power driver."""


def _no_power_driver(_: str) -> bool:
    """Return False: no host has a power driver."""
    return False


def _no_queued_jobs(_: Iterable[str]) -> int:
    """Return 0: there is no job index."""
    return 0


def _unschedulable_reason(heartbeat: HostHeartbeat, endpoint: str) -> WaitReason | None:
    if heartbeat.draining:
        return WaitReason.PAUSED
    reason = heartbeat.unschedulable.get(endpoint)
    if reason is None:
        return None
    return WaitReason(reason) if reason in set(WaitReason) else WaitReason.PAUSED


def _host_state(heartbeat: HostHeartbeat) -> str:
    return "draining" if heartbeat.draining else "online"


def _host_changes(before: dict[str, HostHeartbeat], after: dict[str, HostHeartbeat]) -> Iterable[tuple[str, str]]:
    """Yield kind and host of each change between two polls."""
    for host in before.keys() - after.keys():
        yield "host_offline", host
    for host in after.keys() - before.keys():
        yield "host_online", host
    for host in after.keys() & before.keys():
        if before[host].draining != after[host].draining:
            yield "paused" if after[host].draining else "resumed", host
        healthy = _are_gpus_healthy(before[host]), _are_gpus_healthy(after[host])
        if healthy[0] != healthy[1]:
            yield "gpu_recovered" if healthy[1] else "gpu_unhealthy", host


def _are_gpus_healthy(heartbeat: HostHeartbeat) -> bool:
    return all(gpu.fitness not in {"unhealthy", "lost"} for gpu in heartbeat.gpus)
