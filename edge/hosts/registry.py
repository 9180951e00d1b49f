"""What the edge knows of hosts, polled: presence and offers, who is gone, what changed, why a job waits for them."""

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
    """Something that followers are told of a host; `kind` is one of `messages.NOTICES`.

    `wake_s`: seconds that the host usually takes to wake, None where that was not measured.
    """

    kind: str
    host: str
    at: datetime
    wake_s: float | None = None


# What the power controller says of an endpoint: why its work waits, for which host, seconds of its usual wake, and
# those of them that are left.
WakeForecastSource = Callable[[str], tuple[WaitReason, str, float | None, float | None] | None]
QueuedJobCounter = Callable[[Iterable[str]], int]
PowerDriverCheck = Callable[[str], bool]


class HostRegistry:
    """The hosts as last polled, every `period_s` seconds."""

    def __init__(
        self, bus: Bus, catalog: EndpointRegistry, clock: Clock, period_s: float = HEARTBEAT_INTERVAL_S
    ) -> None:
        self._bus = bus
        self._endpoints = catalog
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

    def set_power_source(self, prospect: WakeForecastSource, switched: PowerDriverCheck) -> None:
        """From now on `prospect` says why work waits for hosts that are not up, `switched` which have a switch."""
        self._wake_forecast = prospect
        self._has_power_driver = switched

    def set_queue_counter(self, queued: QueuedJobCounter) -> None:
        """From now on `queued` counts the jobs that wait in pools."""
        self._count_queued = queued

    async def run(self) -> None:
        """Poll without end; a broker that is away is asked again."""
        while True:
            try:
                await self.refresh()
            except BusError as error:
                _log.warning("hosts_not_read", error=str(error))
            await sleep(self._period_s)

    async def refresh(self) -> None:
        """Read HOSTS and OFFERS, and tell listeners what changed. Raises BusError."""
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
        """Call `listener` with every notice; returns what ends that. It must not block."""
        self._subscribers.add(listener)
        return lambda: self._subscribers.discard(listener)

    def notify(self, notice: HostNotice) -> None:
        """Let every listener know."""
        for listener in tuple(self._subscribers):
            listener(notice)

    def gone_for(self, claim: Claim) -> timedelta | None:
        """How long this edge has seen the claim's incarnation gone, None while it may be alive.

        Gone: HOSTS lacks the host or has another incarnation of it. Absence counts only for an observer that has been
        connected for GONE_AFTER_S without a break; otherwise the count starts anew (DESIGN 3, "Gone").
        """
        name = (claim.host, claim.incarnation)
        here = self._heartbeats.get(claim.host)
        alive = here is not None and here.incarnation == claim.incarnation
        if alive or not self._has_polled or self._bus.health.uptime_s() < HOST_GONE_TIMEOUT_S:
            self._gone_since.pop(name, None)
            return None
        now = self._clock()
        return now - self._gone_since.setdefault(name, now)

    def views(self, owner: str | None = None) -> tuple[HostView, ...]:
        """Every known host; of what runs there only the jobs of `owner`, or all for None."""
        offers = {offer.host: offer for offer in self._endpoints.host_capabilities()}
        return tuple(
            self._view(host, self._heartbeats.get(host), offers.get(host), owner)
            for host in sorted(offers.keys() | self._heartbeats.keys())
        )

    def view(self, host: str, owner: str | None = None) -> HostView | None:
        """One host of `views`, None when it is unknown."""
        return next((view for view in self.views(owner) if view.id == host), None)

    def _view(
        self, host: str, here: HostHeartbeat | None, offer: HostCapabilities | None, owner: str | None
    ) -> HostView:
        endpoints = tuple(endpoint.name for endpoint in offer.endpoints) if offer else ()
        if here is None:
            since = self._left_at.get(host, offer.at if offer else None)
            return HostView(id=host, state="off", since=since, endpoints=endpoints, gpus=offer.gpus if offer else ())
        return HostView(
            id=host,
            state=_host_state(here),
            since=here.since,
            incarnation=here.incarnation,
            endpoints=endpoints,
            engine=here.engine or None,
            engine_away=here.engine_away,
            run_as=here.run_as,
            injection=here.injection,
            gpus=here.gpus,
            warm=here.warm,
            waits=here.blocked_work,
            unschedulable=here.unschedulable,
            cannot=here.unschedulable,
            jobs=tuple(run.id for run in here.running if owner in (None, run.owner)),
            busy=activity_view(
                here.activity, self._count_queued({e.effective_pool for e in offer.endpoints} if offer else ())
            ),
        )

    def wait_reason(self, job: Job, *, in_window: bool) -> WaitReason:
        """Why a scheduled or queued job waits: what the host says comes first, then the window, then the others."""
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
        """Why no host can start the endpoint now, None when one can. Of several hosts the nearest to able speaks.

        One that is up and has no card for it speaks only where no other host could do better.
        """
        offering = self._endpoints.hosts_offering(endpoint)
        reasons = {
            host: _unschedulable_reason(self._heartbeats[host], endpoint)
            for host in offering
            if host in self._heartbeats
        }
        if None in reasons.values():
            return None
        able = [reason for reason in reasons.values() if reason not in {None, WaitReason.GPU_NONE}]
        if able:
            return max((reason for reason in able if reason is not None), key=list(WaitReason).index)
        power, away = self._wake_forecast(endpoint), offering - reasons.keys()
        if power is not None:
            return power[0]
        if not away:
            return WaitReason.GPU_NONE if reasons else WaitReason.NO_HOST
        return WaitReason.HOST_OFF if any(map(self._has_power_driver, away)) else WaitReason.HOST_OFF_UNSWITCHED

    def offline_host_names(self, endpoint: str) -> str:
        """The hosts that offer `endpoint` and are not up, as a message names them."""
        return ", ".join(sorted(self._endpoints.hosts_offering(endpoint) - self._heartbeats.keys()))

    def has_online_host(self, endpoint: str) -> bool:
        """Whether a host that offers `endpoint` is up."""
        return any(host in self._heartbeats for host in self._endpoints.hosts_offering(endpoint))

    def usual_wake_s(self, endpoint: str) -> float | None:
        """Seconds that the host which work for `endpoint` waits for usually takes to wake; None: not known."""
        power = self._wake_forecast(endpoint)
        return power[2] if power else None

    def remaining_wake_s(self, endpoint: str) -> float | None:
        """Seconds of that wake which are still to come, as far as can be foretold; None: not known."""
        power = self._wake_forecast(endpoint)
        return power[3] if power else None

    def candidate_hosts(self, endpoint: str) -> tuple[str, ...]:
        """The hosts that will run work for `endpoint`: those that are up, else the one it waits for, else any."""
        offering = sorted(self._endpoints.hosts_offering(endpoint))
        up = tuple(host for host in offering if host in self._heartbeats)
        power = None if up else self._wake_forecast(endpoint)
        return up or ((power[1],) if power else tuple(offering))


def _no_wake_forecast(_: str) -> None:
    """No host is declared."""


def _no_power_driver(_: str) -> bool:
    """No host is declared."""
    return False


def _no_queued_jobs(_: Iterable[str]) -> int:
    """Nobody counts."""
    return 0


def _unschedulable_reason(here: HostHeartbeat, endpoint: str) -> WaitReason | None:
    if here.draining:
        return WaitReason.PAUSED
    said = here.unschedulable.get(endpoint)
    if said is None:
        return None
    return WaitReason(said) if said in set(WaitReason) else WaitReason.PAUSED


def _host_state(here: HostHeartbeat) -> str:
    return "draining" if here.draining else "online"


def _host_changes(before: dict[str, HostHeartbeat], after: dict[str, HostHeartbeat]) -> Iterable[tuple[str, str]]:
    """Kind and host of what is new between two polls."""
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


def _are_gpus_healthy(here: HostHeartbeat) -> bool:
    return all(gpu.fitness not in {"unhealthy", "lost"} for gpu in here.gpus)


class WakeForecast(NamedTuple):
    """Why work waits for a host, which, the seconds it usually takes to wake (None: not measured), and those left."""

    reason: WaitReason
    host: str
    wake_s: float | None
    remaining_s: float | None
