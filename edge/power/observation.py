"""One look at everything the power law judges by: who beats, what waits and where, which jobs a host still holds."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from bus.interface import Bus
from edge.core.clock import Clock, micros
from edge.hosts.endpoints import EndpointRegistry
from edge.hosts.registry import HostRegistry
from edge.index import sqlite as sql
from edge.index.index import JobIndex
from edge.power import wake_selection
from edge.power.conditions import (
    HeartbeatFacts,
    HostFacts,
    PowerCase,
    Stopwatch,
    is_empty,
    is_used_by_others,
    power_prohibition,
)
from schemas.host import HOST_GONE_TIMEOUT_S, HostHeartbeat
from schemas.host_config import AnyHostConfig
from schemas.power import PowerRecord, PowerState, ReportedPower
from schemas.status import ACTIVE_STATUSES, WAITING_STATUSES, Priority, Status, WaitReason

_ACTIVE_JOBS_LIMIT = 1_000_000  # what runs is bounded by the slots there are, and each of it must be looked at
_SOON_JOBS_LIMIT = 500  # of what comes soon, enough to name its pools

# Asked of the index with `:at`, the time a host needs ahead of now.
DUE_SOON_FILTER = "status = 'scheduled' AND priority <> 'low' AND (due_us IS NULL OR due_us <= :at)"
LOW_NEAR_DEADLINE_FILTER = "status IN ('queued', 'scheduled') AND priority = 'low' AND expires_us <= :at"

# What does not pass when the job before has ended.
UNSERVABLE_REASONS = frozenset(
    {WaitReason.ENGINE_AWAY, WaitReason.GPU_NONE, WaitReason.GPU_UNHEALTHY, WaitReason.IMAGE_MISSING}
)


class FleetObservation(Struct, frozen=True, kw_only=True):
    """`waiting`: pools with work that is or will soon be ready. `waking`: those of them worth a wake.

    `offered` by host: its pools as last heard. `able` by host that beats: those it can serve. `held` by host: records
    running or cancelling there.
    """

    at: datetime
    absence_counts: bool
    heartbeats: Mapping[str, HostHeartbeat]
    offered_pools: Mapping[str, frozenset[str]]
    servable_pools: Mapping[str, frozenset[str]]
    waiting_pools: frozenset[str]
    wake_pools: frozenset[str]
    active_jobs: Mapping[str, int]


class FleetObserver:
    """What this edge sees."""

    def __init__(self, bus: Bus, index: JobIndex, hosts: HostRegistry, catalog: EndpointRegistry, now: Clock) -> None:
        self._bus = bus
        self._index = index
        self._hosts = hosts
        self._catalog = catalog
        self._now = now

    def subscribe_job_changes(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever a job has moved."""
        self._index.subscribe_changes(lambda _steps: changed())

    async def ready(self) -> None:
        """Wait until the jobs are known; nothing may be judged before."""
        await self._index.wait_until_caught_up()

    async def observe(self, lead_s: float, *, closely: bool = False) -> FleetObservation:
        """Everything, now. `lead_s`: how long before its time work calls a host. `closely`: ask the queue too.

        Raises BusError, Refused.
        """
        present = {host: row.value for host, row in (await self._bus.heartbeats.rows()).items()}
        pointed = await self._pointer_pools() if closely else set()
        soon, pressed, lost, held = await self._search_index(lead_s)
        queued = {line.pool for line in self._index.queue_ranks.non_empty_keys()}
        unhurried = {
            line.pool for line in self._index.queue_ranks.non_empty_keys() if line.priority is not Priority.LOW
        }
        waking = unhurried | soon | pressed | lost
        return FleetObservation(
            at=self._now(),
            absence_counts=self._index.is_caught_up and self._bus.health.uptime_s() >= HOST_GONE_TIMEOUT_S,
            heartbeats=present,
            offered_pools={
                offer.host: frozenset(e.effective_pool for e in offer.endpoints)
                for offer in self._catalog.host_capabilities()
            },
            servable_pools={host: self._servable_pools(here) for host, here in present.items()},
            waiting_pools=frozenset(queued | waking | pointed),
            wake_pools=frozenset(waking),
            active_jobs=held,
        )

    async def _search_index(self, lead_s: float) -> tuple[set[str], set[str], set[str], Counter[str]]:
        """What only a search finds, asked where the counts say that there is something."""
        counts = self._index.count_jobs()
        statuses = {count.status for count in counts}
        low = any(line.priority is Priority.LOW for line in self._index.queue_ranks.non_empty_keys())
        scheduled = Status.SCHEDULED in statuses
        at = micros(self._now() + timedelta(seconds=lead_s))
        soon = await self._index.find_pools(DUE_SOON_FILTER, at, _SOON_JOBS_LIMIT) if scheduled else set()
        pressed = (
            await self._index.find_pools(LOW_NEAR_DEADLINE_FILTER, at, _SOON_JOBS_LIMIT) if low or scheduled else set()
        )
        lost, held = await self._active_jobs() if statuses & ACTIVE_STATUSES else (set(), Counter())
        return soon, pressed, lost, held

    async def _active_jobs(self) -> tuple[set[str], Counter[str]]:
        """Pools of jobs whose host is gone, and how many jobs each host holds."""
        lost: set[str] = set()
        held: Counter[str] = Counter()
        for entry in await self._index.find_jobs(sql.ACTIVE, micros(self._now()), _ACTIVE_JOBS_LIMIT):
            job = entry.record.job
            if job.claim is None:
                continue
            held[job.claim.host] += 1
            if self._hosts.gone_for(job.claim) is not None:
                lost.add(job.pool)
        return lost, held

    async def _pointer_pools(self) -> set[str]:
        """Pools of pointers that wait in JOBS, also of those whose records have not reached the index yet."""
        pointers = await self._bus.job_queue.list_pending()
        known = await self._index.find_rows({pointer.key for pointer in pointers})
        return {p.pool for p in pointers if p.key not in known or known[p.key].status in WAITING_STATUSES}

    def _servable_pools(self, here: HostHeartbeat) -> frozenset[str]:
        offer = next((offer for offer in self._catalog.host_capabilities() if offer.host == here.host), None)
        endpoints = offer.endpoints if offer else ()
        return frozenset(
            e.effective_pool for e in endpoints if here.unschedulable.get(e.name) not in UNSERVABLE_REASONS
        )

    def hosts_offering(self, endpoint: str, declared: Iterable[str]) -> set[str]:
        """Of the declared hosts those that offer `endpoint`; one that was never seen may."""
        seen = {offer.host for offer in self._catalog.host_capabilities()}
        return {host for host in declared if host not in seen or host in self._catalog.hosts_offering(endpoint)}


# MERGED edge/power/observer.py: Turns what is seen into the facts of one host: with the time that this edge has
# watched each of them.


def state_key(record: PowerRecord) -> tuple[PowerState, object]:
    """What tells one stay in a state from the next."""
    return record.state, record.since


class DriverReport(NamedTuple):
    """Whether a host's switch can tell that it is off, and its last word."""

    can_report_state: bool
    reported_power: ReportedPower


class HostObserver:
    """The declared hosts, watched by one edge."""

    def __init__(self, declared: Mapping[str, AnyHostConfig], watch: Stopwatch) -> None:
        self._declared = declared
        self._stopwatch = watch

    def hosts_to_wake(self, records: Mapping[str, PowerRecord], outlook: FleetObservation) -> frozenset[str]:
        """The hosts that should be awake for work that nobody serves."""
        candidates = [
            wake_selection.WakeCandidate(
                host,
                rules.wake_priority,
                outlook.offered_pools.get(host),
                records[host].state,
                self._in_state_s(host, records[host]),
                rules.fallback_after,
            )
            for host, rules in self._declared.items()
        ]
        return wake_selection.select_hosts_to_wake(outlook.wake_pools, self._served_pools(records, outlook), candidates)

    def _served_pools(self, records: Mapping[str, PowerRecord], outlook: FleetObservation) -> set[str]:
        serving = (host for host, here in outlook.heartbeats.items() if self._is_serving(here, records, outlook))
        return {pool for host in serving for pool in outlook.servable_pools[host]}

    def _is_serving(self, here: HostHeartbeat, records: Mapping[str, PowerRecord], outlook: FleetObservation) -> bool:
        record = records.get(here.host)
        if record is None:
            return not here.draining
        if record.state is PowerState.DRAINING:  # new work undoes a drain that nobody ordered
            return power_prohibition(record, outlook.at, self._declared[here.host]) is None
        return record.state is PowerState.ONLINE

    def observe_host(
        self, host: str, record: PowerRecord, outlook: FleetObservation, *, called: bool, told: DriverReport
    ) -> HostFacts:
        """What the law may know of `host` now."""
        facts = current_facts(host, outlook)
        case = PowerCase(record, facts, self._declared[host])
        idle = (
            facts.absence_counts
            and facts.heartbeat is not None
            and is_empty(case)
            and not (facts.has_queued_work or is_used_by_others(case))
        )
        idle_s = self._stopwatch.seconds((host, "idle"), idle)
        called_s = self._stopwatch.seconds((host, "called"), called)
        call = record.call and (record.call.id, record.call.result is None)
        return replace(
            facts,
            can_report_state=told.can_report_state,
            reported_power=told.reported_power,
            wake_requested=called,
            wake_requested_s=called_s if called else 0.0,
            idle_s=idle_s if idle else 0.0,
            in_state_s=self._in_state_s(host, record),
            call_s=self._stopwatch.seconds((host, "call"), call),
        )

    def _in_state_s(self, host: str, record: PowerRecord) -> float:
        return self._stopwatch.seconds((host, "state"), state_key(record))


def current_facts(host: str, outlook: FleetObservation) -> HostFacts:
    """The facts that need no watching: who beats, what waits, what is held."""
    here, pools = outlook.heartbeats.get(host), outlook.offered_pools.get(host)
    return HostFacts(
        at=outlook.at,
        absence_counts=outlook.absence_counts,
        heartbeat=None if here is None else _heartbeat_facts(here),
        has_queued_work=bool(outlook.waiting_pools if pools is None else outlook.waiting_pools & pools),
        active_jobs=outlook.active_jobs.get(host, 0),
    )


def _heartbeat_facts(here: HostHeartbeat) -> HeartbeatFacts:
    busy = len(here.running) + here.activity.unrecovered
    return HeartbeatFacts(here.incarnation, here.draining, busy, here.activity.foreign_uses)
