"""What the edge knows of hosts, polled: presence and offers, who is gone, what changed, why a job waits for them."""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

import structlog
from anyio import sleep
from msgspec import Struct
from msgspec.structs import replace

from bus.port import Bus, BusError
from edge.services.catalog import Catalog
from edge.services.clock import Clock
from schemas.host import GONE_AFTER_S, PRESENCE_EVERY_S, HostView, Offer, Presence
from schemas.job import Claim, Job
from schemas.reasons import Reason, foremost

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
Prospect = Callable[[str], tuple[Reason, str, float | None, float | None] | None]
Queued = Callable[[Iterable[str]], int]
Switched = Callable[[str], bool]


class HostWatch:
    """The hosts as last polled, every `period_s` seconds."""

    def __init__(self, bus: Bus, catalog: Catalog, clock: Clock, period_s: float = PRESENCE_EVERY_S) -> None:
        self._bus = bus
        self._catalog = catalog
        self._clock = clock
        self._period_s = period_s
        self._present: dict[str, Presence] = {}
        self._left_at: dict[str, datetime] = {}
        self._missed: dict[tuple[str, str], datetime] = {}
        self._listeners: set[Callable[[HostNotice], object]] = set()
        self._prospect: Prospect = _nobody_switches
        self._switched: Switched = _without_switch
        self._queued: Queued = _nothing_waits
        self._polled = False

    def ask_power(self, prospect: Prospect, switched: Switched) -> None:
        """From now on `prospect` says why work waits for hosts that are not up, `switched` which have a switch."""
        self._prospect = prospect
        self._switched = switched

    def count_by(self, queued: Queued) -> None:
        """From now on `queued` counts the jobs that wait in pools."""
        self._queued = queued

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
        await self._catalog.refresh()
        present = {host: row.value for host, row in (await self._bus.hosts.rows()).items()}
        before, self._present = self._present, present
        at = self._clock()
        for host in before.keys() - present.keys():
            self._left_at[host] = at
        if self._polled:
            for kind, host in sorted(_changes(before, present)):
                self.tell(HostNotice(kind, host, at))
        self._polled = True

    def listen(self, listener: Callable[[HostNotice], object]) -> Callable[[], None]:
        """Call `listener` with every notice; returns what ends that. It must not block."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def tell(self, notice: HostNotice) -> None:
        """Let every listener know."""
        for listener in tuple(self._listeners):
            listener(notice)

    def gone_for(self, claim: Claim) -> timedelta | None:
        """How long this edge has seen the claim's incarnation gone, None while it may be alive.

        Gone: HOSTS lacks the host or has another incarnation of it. Absence counts only for an observer that has been
        connected for GONE_AFTER_S without a break; otherwise the count starts anew (DESIGN 3, "Gone").
        """
        name = (claim.host, claim.incarnation)
        here = self._present.get(claim.host)
        alive = here is not None and here.incarnation == claim.incarnation
        if alive or not self._polled or self._bus.link.unbroken_s() < GONE_AFTER_S:
            self._missed.pop(name, None)
            return None
        now = self._clock()
        return now - self._missed.setdefault(name, now)

    def views(self, owner: str | None = None) -> tuple[HostView, ...]:
        """Every known host; of what runs there only the jobs of `owner`, or all for None."""
        offers = {offer.host: offer for offer in self._catalog.offers()}
        return tuple(
            self._view(host, self._present.get(host), offers.get(host), owner)
            for host in sorted(offers.keys() | self._present.keys())
        )

    def view(self, host: str, owner: str | None = None) -> HostView | None:
        """One host of `views`, None when it is unknown."""
        return next((view for view in self.views(owner) if view.id == host), None)

    def _view(self, host: str, here: Presence | None, offer: Offer | None, owner: str | None) -> HostView:
        endpoints = tuple(endpoint.name for endpoint in offer.endpoints) if offer else ()
        if here is None:
            since = self._left_at.get(host, offer.at if offer else None)
            return HostView(id=host, state="off", since=since, endpoints=endpoints, gpus=offer.gpus if offer else ())
        return HostView(
            id=host,
            state=_state(here),
            since=here.since,
            incarnation=here.incarnation,
            endpoints=endpoints,
            engine=here.engine or None,
            engine_away=here.engine_away,
            run_as=here.run_as,
            injection=here.injection,
            gpus=here.gpus,
            warm=here.warm,
            waits=here.waits,
            cannot=here.cannot,
            jobs=tuple(run.id for run in here.running if owner in (None, run.owner)),
            busy=replace(here.busy, queued=self._queued({e.queue for e in offer.endpoints} if offer else ())),
        )

    def waiting_reason(self, job: Job, *, in_window: bool) -> Reason:
        """Why a scheduled or queued job waits: what the host says comes first, then the window, then the others."""
        now = self._clock()
        own = {
            Reason.AWAITING_INPUT: bool(job.missing),
            Reason.FETCHING_INPUT: bool(job.fetching),
            Reason.NOT_BEFORE: job.not_before is not None and job.not_before > now,
            Reason.BACKOFF: job.backoff_until is not None and job.backoff_until > now,
            Reason.QUOTA: not in_window,
            Reason.BEHIND: True,
        }
        true = {reason for reason, holds in own.items() if holds}
        host = self._host_side(job.endpoint)
        return foremost(true | ({host} if host else set())) or Reason.BEHIND

    def _host_side(self, endpoint: str) -> Reason | None:
        """Why no host can start the endpoint now, None when one can. Of several hosts the nearest to able speaks.

        One that is up and has no card for it speaks only where no other host could do better.
        """
        offering = self._catalog.hosts_offering(endpoint)
        reasons = {host: _obstacle(self._present[host], endpoint) for host in offering if host in self._present}
        if None in reasons.values():
            return None
        able = [reason for reason in reasons.values() if reason not in {None, Reason.GPU_NONE}]
        if able:
            return max((reason for reason in able if reason is not None), key=list(Reason).index)
        power, away = self._prospect(endpoint), offering - reasons.keys()
        if power is not None:
            return power[0]
        if not away:
            return Reason.GPU_NONE if reasons else Reason.NO_HOST
        return Reason.HOST_OFF if any(map(self._switched, away)) else Reason.HOST_OFF_UNSWITCHED

    def absent(self, endpoint: str) -> str:
        """The hosts that offer `endpoint` and are not up, as a message names them."""
        return ", ".join(sorted(self._catalog.hosts_offering(endpoint) - self._present.keys()))

    def online(self, endpoint: str) -> bool:
        """Whether a host that offers `endpoint` is up."""
        return any(host in self._present for host in self._catalog.hosts_offering(endpoint))

    def wake_s(self, endpoint: str) -> float | None:
        """Seconds that the host which work for `endpoint` waits for usually takes to wake; None: not known."""
        power = self._prospect(endpoint)
        return power[2] if power else None

    def wake_left_s(self, endpoint: str) -> float | None:
        """Seconds of that wake which are still to come, as far as can be foretold; None: not known."""
        power = self._prospect(endpoint)
        return power[3] if power else None

    def takers(self, endpoint: str) -> tuple[str, ...]:
        """The hosts that will run work for `endpoint`: those that are up, else the one it waits for, else any."""
        offering = sorted(self._catalog.hosts_offering(endpoint))
        up = tuple(host for host in offering if host in self._present)
        power = None if up else self._prospect(endpoint)
        return up or ((power[1],) if power else tuple(offering))


def _nobody_switches(_: str) -> None:
    """No host is declared."""


def _without_switch(_: str) -> bool:
    """No host is declared."""
    return False


def _nothing_waits(_: Iterable[str]) -> int:
    """Nobody counts."""
    return 0


def _obstacle(here: Presence, endpoint: str) -> Reason | None:
    if here.draining:
        return Reason.PAUSED
    said = here.cannot.get(endpoint)
    if said is None:
        return None
    return Reason(said) if said in set(Reason) else Reason.PAUSED


def _state(here: Presence) -> str:
    return "draining" if here.draining else "online"


def _changes(before: dict[str, Presence], after: dict[str, Presence]) -> Iterable[tuple[str, str]]:
    """Kind and host of what is new between two polls."""
    for host in before.keys() - after.keys():
        yield "host_offline", host
    for host in after.keys() - before.keys():
        yield "host_online", host
    for host in after.keys() & before.keys():
        if before[host].draining != after[host].draining:
            yield "paused" if after[host].draining else "resumed", host
        healthy = _healthy(before[host]), _healthy(after[host])
        if healthy[0] != healthy[1]:
            yield "gpu_recovered" if healthy[1] else "gpu_unhealthy", host


def _healthy(here: Presence) -> bool:
    return all(gpu.fitness not in {"unhealthy", "lost"} for gpu in here.gpus)
