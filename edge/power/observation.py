"""Reads what the power rules judge by: heartbeats, waiting jobs by pool, and the jobs that each host runs.

`FleetObserver` reads everything once per tick. `HostObserver` turns this into the facts of one host, with the time for
which this edge has watched each of them.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
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
    is_empty,
    is_used_by_others,
    power_prohibition,
)
from schemas.host import HOST_GONE_TIMEOUT_S, HostHeartbeat
from schemas.host_config import AnyHostConfig
from schemas.power import PowerRecord, PowerState, ReportedPower
from schemas.status import ACTIVE_STATUSES, FINAL_STATUSES, WAITING_STATUSES, Priority, Status, WaitReason

_ACTIVE_JOBS_LIMIT = 1_000_000  # running jobs are bounded by the slots, and each must be read
_SOON_JOBS_LIMIT = 500  # enough to find the pools of jobs that are due soon

# Filters of the index; `:at` is the current time plus the wake time of a host.
DUE_SOON_FILTER = "status = 'scheduled' AND priority <> 'low' AND (due_us IS NULL OR due_us <= :at)"
LOW_NEAR_DEADLINE_FILTER = "status IN ('queued', 'scheduled') AND priority = 'low' AND expires_us <= :at"

# Reasons that do not end when the current job ends.
UNSERVABLE_REASONS = frozenset(
    {
        WaitReason.ENGINE_AWAY,
        WaitReason.GPU_NONE,
        WaitReason.REQUIREMENT_UNMET,
        WaitReason.GPU_UNHEALTHY,
        WaitReason.IMAGE_MISSING,
        WaitReason.VOLUME_MISSING,
    }
)


class FleetObservation(Struct, frozen=True, kw_only=True):
    """The knowledge of this edge about all hosts at the time `at`.

    `waiting_pools`: pools with jobs that are ready, or will be soon. `wake_pools`: those for which a host is woken.
    `offered_pools`: by host, those with an endpoint whose requirements it meets, as last offered. `servable_pools`: by
    online host, those that it can serve. `active_jobs`: by host, the number of jobs recorded as running or cancelling
    there. `in_maintenance`: the hosts that are. Jobs of a paused endpoint count for no pool.
    """

    at: datetime
    absence_counts: bool
    heartbeats: Mapping[str, HostHeartbeat]
    offered_pools: Mapping[str, frozenset[str]]
    servable_pools: Mapping[str, frozenset[str]]
    waiting_pools: frozenset[str]
    wake_pools: frozenset[str]
    active_jobs: Mapping[str, int]
    in_maintenance: frozenset[str] = frozenset()


class FleetObserver:
    """Reads heartbeats, offers and jobs from the bus and the index."""

    def __init__(self, bus: Bus, index: JobIndex, hosts: HostRegistry, endpoints: EndpointRegistry, now: Clock) -> None:
        self._bus = bus
        self._index = index
        self._hosts = hosts
        self._endpoints = endpoints
        self._now = now

    def subscribe_job_changes(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever a job changes."""
        self._index.subscribe_changes(lambda _changes: changed())

    async def ready(self) -> None:
        """Wait until the jobs are known. No decision may be made before."""
        await self._index.wait_until_caught_up()

    async def observe(self, lead_s: float, *, include_queue: bool = False) -> FleetObservation:
        """Read everything now. Raises BusError, ProblemError.

        `lead_s`: how long before its time a scheduled job wakes a host. `include_queue`: also read JOBS.
        """
        await self._hosts.pauses.refresh()
        present = {host: row.value for host, row in (await self._bus.heartbeats.rows()).items()}
        pointed = await self._pointer_pools() if include_queue else set()
        soon, low_due, lost, active_jobs = await self._search_index(lead_s)
        startable = self._startable_pools()
        queued = {key.pool for key in self._index.queue_ranks.non_empty_keys()}
        above_low = {key.pool for key in self._index.queue_ranks.non_empty_keys() if key.priority is not Priority.LOW}
        wake = (above_low | soon | low_due | lost) & startable
        return FleetObservation(
            at=self._now(),
            absence_counts=self._index.is_caught_up and self._bus.health.uptime_s() >= HOST_GONE_TIMEOUT_S,
            heartbeats=present,
            offered_pools={
                offer.host: frozenset(e.effective_pool for e in offer.endpoints if e.name not in offer.unmet)
                for offer in self._endpoints.host_capabilities()
            },
            servable_pools={host: self._servable_pools(heartbeat) for host, heartbeat in present.items()},
            waiting_pools=frozenset((queued & startable) | wake | pointed),
            wake_pools=frozenset(wake),
            active_jobs=active_jobs,
            in_maintenance=self._hosts.pauses.hosts_in_maintenance,
        )

    def _startable_pools(self) -> set[str]:
        """Return the pools with unfinished jobs of an endpoint that is not paused."""
        pauses = self._hosts.pauses
        return {
            count.pool
            for count in self._index.count_jobs()
            if count.status not in FINAL_STATUSES and pauses.of_endpoint(count.endpoint) is None
        }

    async def _search_index(self, lead_s: float) -> tuple[set[str], set[str], set[str], Counter[str]]:
        """Search the index, but only for statuses that its counts show.

        Return the pools of jobs due soon, of low jobs near their deadline, of jobs whose host is gone, and the number
        of active jobs by host.
        """
        counts = self._index.count_jobs()
        statuses = {count.status for count in counts}
        has_low = any(key.priority is Priority.LOW for key in self._index.queue_ranks.non_empty_keys())
        has_scheduled = Status.SCHEDULED in statuses
        at = micros(self._now() + timedelta(seconds=lead_s))
        soon = await self._index.find_pools(DUE_SOON_FILTER, at, _SOON_JOBS_LIMIT) if has_scheduled else set()
        low_due = (
            await self._index.find_pools(LOW_NEAR_DEADLINE_FILTER, at, _SOON_JOBS_LIMIT)
            if has_low or has_scheduled
            else set()
        )
        lost, active_jobs = await self._active_jobs() if statuses & ACTIVE_STATUSES else (set(), Counter())
        return soon, low_due, lost, active_jobs

    async def _active_jobs(self) -> tuple[set[str], Counter[str]]:
        """Return the pools of jobs whose host is gone, and the number of active jobs by host."""
        lost: set[str] = set()
        active_jobs: Counter[str] = Counter()
        for entry in await self._index.find_jobs(sql.ACTIVE, micros(self._now()), _ACTIVE_JOBS_LIMIT):
            job = entry.record.job
            if job.claim is None:
                continue
            active_jobs[job.claim.host] += 1
            if self._hosts.gone_for(job.claim) is not None:
                lost.add(job.pool)
        return lost, active_jobs

    async def _pointer_pools(self) -> set[str]:
        """Return the pools of waiting pointers in JOBS, also of those whose records are not in the index yet."""
        pointers = await self._bus.job_queue.list_pending()
        known = await self._index.find_rows({pointer.key for pointer in pointers})
        waiting = (p for p in pointers if p.key not in known or known[p.key].status in WAITING_STATUSES)
        pauses = self._hosts.pauses
        return {p.pool for p in waiting if p.key not in known or pauses.of_endpoint(known[p.key].endpoint) is None}

    def _servable_pools(self, heartbeat: HostHeartbeat) -> frozenset[str]:
        offer = self._endpoints.capabilities_of(heartbeat.host)
        endpoints = offer.endpoints if offer else ()
        return frozenset(
            e.effective_pool for e in endpoints if heartbeat.unschedulable.get(e.name) not in UNSERVABLE_REASONS
        )

    def hosts_offering(self, endpoint: str, declared: Iterable[str]) -> set[str]:
        """Return the declared hosts that can run `endpoint`, except those in maintenance.

        A host that was never seen may offer it.
        """
        seen = {offer.host for offer in self._endpoints.host_capabilities()}
        offering = self._endpoints.hosts_offering(endpoint) - self._endpoints.unmet(endpoint).keys()
        wakeable = set(declared) - self._hosts.pauses.hosts_in_maintenance
        return {host for host in wakeable if host not in seen or host in offering}


def state_key(record: PowerRecord) -> tuple[PowerState, object]:
    """Return a value that identifies one period in a state."""
    return record.state, record.since


class DriverReport(NamedTuple):
    """Whether a host's power driver can report OFF, and its last report."""

    can_report_state: bool
    reported_power: ReportedPower


class Stopwatch:
    """Measures for how long named values have been unchanged. `monotonic`: in seconds."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._values: dict[Hashable, tuple[object, float]] = {}

    def seconds(self, name: Hashable, value: object) -> float:
        """Return for how many seconds `name` has had this `value`; 0 if it has just changed."""
        now = self._monotonic()
        previous, since = self._values.get(name, (None, now))
        if name not in self._values or previous != value:
            self._values[name] = value, now
            return 0.0
        return now - since


class HostObserver:
    """Turns observations into the facts of the declared hosts."""

    def __init__(self, declared: Mapping[str, AnyHostConfig], stopwatch: Stopwatch) -> None:
        self._declared = declared
        self._stopwatch = stopwatch

    def hosts_to_wake(self, records: Mapping[str, PowerRecord], fleet: FleetObservation) -> frozenset[str]:
        """Return the hosts to wake for jobs that no online host serves."""
        candidates = [
            wake_selection.WakeCandidate(
                host,
                rules.wake_priority,
                fleet.offered_pools.get(host),
                records[host].state,
                self._in_state_s(host, records[host]),
                rules.fallback_after,
            )
            for host, rules in self._declared.items()
            if host not in fleet.in_maintenance
        ]
        return wake_selection.select_hosts_to_wake(fleet.wake_pools, self._served_pools(records, fleet), candidates)

    def _served_pools(self, records: Mapping[str, PowerRecord], fleet: FleetObservation) -> set[str]:
        serving = (host for host, heartbeat in fleet.heartbeats.items() if self._is_serving(heartbeat, records, fleet))
        return {pool for host in serving for pool in fleet.servable_pools[host]}

    def _is_serving(
        self, heartbeat: HostHeartbeat, records: Mapping[str, PowerRecord], fleet: FleetObservation
    ) -> bool:
        record = records.get(heartbeat.host)
        if heartbeat.host in fleet.in_maintenance:
            return False
        if record is None:
            return not heartbeat.draining
        if record.state is PowerState.DRAINING:  # new work ends a drain that no rule demands
            return power_prohibition(record, fleet.at, self._declared[heartbeat.host]) is None
        return record.state is PowerState.ONLINE

    def observe_host(
        self, host: str, record: PowerRecord, fleet: FleetObservation, *, wake_requested: bool, report: DriverReport
    ) -> HostFacts:
        """Return the facts of `host`, with durations."""
        facts = current_facts(host, fleet)
        case = PowerCase(record, facts, self._declared[host])
        is_idle = (
            facts.absence_counts
            and facts.heartbeat is not None
            and is_empty(case)
            and not (facts.has_queued_work or is_used_by_others(case))
        )
        idle_s = self._stopwatch.seconds((host, "idle"), is_idle)
        wake_requested_s = self._stopwatch.seconds((host, "wake_requested"), wake_requested)
        call = record.call and (record.call.id, record.call.result is None)
        return replace(
            facts,
            can_report_state=report.can_report_state,
            reported_power=report.reported_power,
            wake_requested=wake_requested,
            wake_requested_s=wake_requested_s if wake_requested else 0.0,
            idle_s=idle_s if is_idle else 0.0,
            in_state_s=self._in_state_s(host, record),
            call_s=self._stopwatch.seconds((host, "call"), call),
        )

    def _in_state_s(self, host: str, record: PowerRecord) -> float:
        return self._stopwatch.seconds((host, "state"), state_key(record))


def current_facts(host: str, fleet: FleetObservation) -> HostFacts:
    """Return the facts of `host` that need no durations."""
    heartbeat, pools = fleet.heartbeats.get(host), fleet.offered_pools.get(host)
    return HostFacts(
        at=fleet.at,
        absence_counts=fleet.absence_counts,
        heartbeat=None if heartbeat is None else _heartbeat_facts(heartbeat),
        has_queued_work=bool(fleet.waiting_pools if pools is None else fleet.waiting_pools & pools),
        active_jobs=fleet.active_jobs.get(host, 0),
        in_maintenance=host in fleet.in_maintenance,
    )


def _heartbeat_facts(heartbeat: HostHeartbeat) -> HeartbeatFacts:
    unfinished = len(heartbeat.running) + heartbeat.activity.unrecovered
    return HeartbeatFacts(heartbeat.incarnation, heartbeat.draining, unfinished, heartbeat.activity.foreign_uses)
