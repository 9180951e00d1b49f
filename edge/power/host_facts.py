"""Turns observations of the fleet into a plan for its pools, and into the facts of each declared host.

Durations are measured on a monotonic clock, from when this edge first saw the value.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from msgspec.structs import replace

from edge.core.messages import DEFAULT_WAKE_S
from edge.power import views
from edge.power.conditions import (
    UNREADABLE_HEARTBEAT,
    HeartbeatFacts,
    HostFacts,
    PowerCase,
    active_override,
    is_empty,
    is_unreadable,
    is_used_by_others,
    power_prohibition,
    was_stopped_lately,
)
from edge.power.observation import FleetObservation, PoolJobs
from edge.power.scale_rule import DEFAULT_POOL, FleetHost, FleetPlan, HostPhase, PoolDemand, plan_fleet
from schemas.host import HostHeartbeat
from schemas.host_config import AnyHostConfig, PoolConfig
from schemas.power import PowerCallOutcome, PowerRecord, PowerState, ReportedPower


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


class PoolLoads:
    """The average number of running jobs of each pool. A value from `cool_down_s` ago counts for about a third."""

    def __init__(self, monotonic: Callable[[], float], rules: Mapping[str, PoolConfig]) -> None:
        self._monotonic = monotonic
        self._rules = rules
        self._loads: dict[str, tuple[float, float]] = {}

    def update(self, running: Mapping[str, int]) -> None:
        """Take the present numbers into the averages. A pool that is new starts with its present number."""
        now = self._monotonic()
        for pool in running.keys() | self._loads.keys():
            present = float(running.get(pool, 0))
            before, since = self._loads.get(pool, (present, now))
            period_s = max(self._rules.get(pool, DEFAULT_POOL).cool_down_s, 0.001)
            weight = math.exp(-max(0.0, now - since) / period_s)
            self._loads[pool] = present + (before - present) * weight, now

    def load(self, pool: str) -> float:
        """Return the average of the pool."""
        return self._loads.get(pool, (0.0, 0.0))[0]


class PlannedFleet(NamedTuple):
    """The plan for the pools, and the hosts that may go off now because the others suffice.

    `cooling`: hosts for which that is so in a while, with the seconds that are left.
    """

    plan: FleetPlan
    released: frozenset[str]
    cooling: Mapping[str, float] = MappingProxyType({})


class HostObserver:
    """Turns observations into the plan, and into the facts of the declared hosts. `rules`: by pool."""

    def __init__(
        self, declared: Mapping[str, AnyHostConfig], rules: Mapping[str, PoolConfig], monotonic: Callable[[], float]
    ) -> None:
        self._declared = declared
        self._rules = rules
        self._stopwatch = Stopwatch(monotonic)
        self._loads = PoolLoads(monotonic, rules)

    def plan(self, records: Mapping[str, PowerRecord], fleet: FleetObservation) -> PlannedFleet:
        """Return the plan for all pools. Call it once per tick: it takes the running jobs into the averages."""
        self._loads.update({pool: jobs.running for pool, jobs in fleet.pools.items()})
        return self.plan_again(records, fleet)

    def plan_again(self, records: Mapping[str, PowerRecord], fleet: FleetObservation) -> PlannedFleet:
        """Return the plan for all pools, with the averages as they are."""
        demands = {pool: self._demand(pool, jobs) for pool, jobs in fleet.pools.items()}
        hosts = [host for host in map(self._declared_host(records, fleet), self._declared) if host is not None]
        hosts += [_undeclared_host(host, fleet) for host in self._undeclared(fleet)]
        plan = plan_fleet(demands, hosts, self._rules)
        resumable = {host.name for host in hosts if host.phase is HostPhase.RESUMABLE}
        cooling = self._cool_down_left_s(plan, fleet)
        released = (resumable - plan.resumed) | {host for host, left_s in cooling.items() if left_s <= 0}
        return PlannedFleet(plan, frozenset(released), {host: left_s for host, left_s in cooling.items() if left_s > 0})

    def _demand(self, pool: str, jobs: PoolJobs) -> PoolDemand:
        return PoolDemand(jobs.wake, jobs.waiting, jobs.run_s, self._loads.load(pool), jobs.concurrency)

    def _cool_down_left_s(self, plan: FleetPlan, fleet: FleetObservation) -> dict[str, float]:
        """Return the superfluous hosts, each with the rest of the `cool_down_s` of its pools; 0 when it is over.

        Which host is the emptiest changes with every job, so it is their number that must have lasted. An edge that was
        cut off from the broker starts again: it does not know what was needed meanwhile.
        """
        groups: dict[frozenset[str], list[str]] = {frozenset(offer.slots): [] for offer in fleet.offers.values()}
        for host in plan.surplus:
            groups.setdefault(self._pools_of(host, fleet), []).append(host)
        left_s: dict[str, float] = {}
        for pools, hosts in groups.items():
            cool_down_s = max((self._rules.get(pool, DEFAULT_POOL).cool_down_s for pool in pools), default=0.0)
            largest = sum(frozenset(offer.slots) == pools for offer in fleet.offers.values())
            for number in range(1, max(largest, len(hosts)) + 1):
                is_superfluous = number <= len(hosts)
                counts = is_superfluous and fleet.absence_counts
                counted_s = self._stopwatch.seconds((pools, "surplus", number), counts)
                if is_superfluous:
                    left_s[hosts[number - 1]] = max(0.0, cool_down_s - (counted_s if counts else 0.0))
        return left_s

    @staticmethod
    def _pools_of(host: str, fleet: FleetObservation) -> frozenset[str]:
        offer = fleet.offers.get(host)
        return frozenset(offer.slots) if offer else frozenset()

    def _declared_host(
        self, records: Mapping[str, PowerRecord], fleet: FleetObservation
    ) -> Callable[[str], FleetHost | None]:
        """Return the function that describes a declared host for the rule; None if the host cannot help."""

        def describe(host: str) -> FleetHost | None:
            record, rules, heartbeat = records[host], self._declared[host], fleet.heartbeats.get(host)
            phase = None if host in fleet.in_maintenance else self._phase(host, record, fleet)
            if phase is None:
                return None
            offer = fleet.offers.get(host)
            is_up = phase in {HostPhase.SERVING, HostPhase.RESUMABLE}
            case = PowerCase(record, current_facts(host, fleet), rules)
            override = active_override(record, fleet.at)
            return FleetHost(
                name=host,
                phase=phase,
                slots=_offered_slots(host, fleet) if is_up or offer else None,
                occupied=_occupied(host, heartbeat, fleet) if is_up else 0,
                ready_s=0.0 if is_up else _ready_s(record, fleet),
                wake_priority=rules.wake_priority,
                hourly_cost=rules.price.hourly_cost if rules.price else 0.0,
                vram_mb=offer.vram_mb if offer else 0,
                is_fixed=(override is not None and override.want == "on")
                or is_used_by_others(case)
                or is_unreadable(case),
                was_stopped_lately=was_stopped_lately(case),
            )

        return describe

    def _phase(self, host: str, record: PowerRecord, fleet: FleetObservation) -> HostPhase | None:
        state, is_heartbeating = record.state, host in fleet.online_hosts
        is_prohibited = power_prohibition(record, fleet.at, self._declared[host]) is not None
        if state is PowerState.ONLINE:
            return HostPhase.SERVING
        if is_heartbeating and (state is PowerState.DRAINING or _is_stop_undone(record)):
            return None if is_prohibited else HostPhase.RESUMABLE  # new work ends a drain that no rule demands
        if state is PowerState.FAULT or record.failed_boots:
            return HostPhase.FAILED
        if state is PowerState.BLOCKED:
            is_passed_over = self._in_state_s(host, record) >= self._declared[host].fallback_after
            return HostPhase.FAILED if is_passed_over else HostPhase.COMING
        return HostPhase.COMING if state is PowerState.WAKING else HostPhase.DARK

    def _undeclared(self, fleet: FleetObservation) -> Iterable[str]:
        others = fleet.online_hosts - self._declared.keys() - fleet.in_maintenance
        return sorted(host for host in others if host in fleet.unreadable or not fleet.heartbeats[host].draining)

    def observe_host(
        self, host: str, record: PowerRecord, fleet: FleetObservation, planned: PlannedFleet, report: DriverReport
    ) -> HostFacts:
        """Return the facts of `host`, with durations."""
        facts = self.planned_facts(host, fleet, planned)
        case = PowerCase(record, facts, self._declared[host])
        is_idle = (
            facts.absence_counts
            and facts.heartbeat is not None
            and is_empty(case)
            and not (facts.has_queued_work or is_used_by_others(case))
        )
        idle_s = self._stopwatch.seconds((host, "idle"), is_idle)
        wake_requested_s = self._stopwatch.seconds((host, "wake_requested"), facts.wake_requested)
        call = record.call and (record.call.id, record.call.result is None)
        return replace(
            facts,
            can_report_state=report.can_report_state,
            reported_power=report.reported_power,
            wake_requested_s=wake_requested_s if facts.wake_requested else 0.0,
            idle_s=idle_s if is_idle else 0.0,
            in_state_s=self._in_state_s(host, record),
            call_s=self._stopwatch.seconds((host, "call"), call),
        )

    def planned_facts(self, host: str, fleet: FleetObservation, planned: PlannedFleet) -> HostFacts:
        """Return the facts of `host` that need no durations, with what the plan says about it."""
        plan = planned.plan
        return replace(
            current_facts(host, fleet),
            wake_requested=host in plan.wake,
            wake_reason=plan.wake.get(host, ""),
            is_reserved=host in plan.reserved,
            is_released=host in planned.released,
            cool_down_left_s=planned.cooling.get(host),
            has_pool_rule=not self._rules.keys().isdisjoint(self._pools_of(host, fleet)),
        )

    def _in_state_s(self, host: str, record: PowerRecord) -> float:
        return self._stopwatch.seconds((host, "state"), state_key(record))


def current_facts(host: str, fleet: FleetObservation) -> HostFacts:
    """Return the facts of `host` that need neither durations nor a plan."""
    offer, waiting = fleet.offers.get(host), fleet.waiting_pools
    return HostFacts(
        at=fleet.at,
        absence_counts=fleet.absence_counts,
        heartbeat=_heartbeat_facts(host, fleet),
        has_queued_work=bool(waiting if offer is None else waiting & offer.slots.keys()),
        has_waking_work=any(jobs.wake and (offer is None or pool in offer.slots) for pool, jobs in fleet.pools.items()),
        active_jobs=fleet.active_jobs.get(host, 0),
        in_maintenance=host in fleet.in_maintenance,
    )


def _heartbeat_facts(host: str, fleet: FleetObservation) -> HeartbeatFacts | None:
    heartbeat = fleet.heartbeats.get(host)
    if heartbeat is None:
        return UNREADABLE_HEARTBEAT if host in fleet.unreadable else None
    unfinished = len(heartbeat.running) + heartbeat.activity.unrecovered
    return HeartbeatFacts(heartbeat.incarnation, heartbeat.draining, unfinished, heartbeat.activity.foreign_uses)


def _undeclared_host(host: str, fleet: FleetObservation) -> FleetHost:
    """Return an online host without a power driver: it serves, and cannot be switched."""
    return FleetHost(
        name=host,
        phase=HostPhase.SERVING,
        slots=_offered_slots(host, fleet),
        occupied=_occupied(host, fleet.heartbeats.get(host), fleet),
        is_fixed=True,
    )


def _offered_slots(host: str, fleet: FleetObservation) -> Mapping[str, int]:
    """Return the slots by pool; of an online host without the pools that it cannot serve now."""
    offer, servable = fleet.offers.get(host), fleet.servable_pools.get(host)
    slots = offer.slots if offer else {}
    return slots if servable is None else {pool: number for pool, number in slots.items() if pool in servable}


def _occupied(host: str, heartbeat: HostHeartbeat | None, fleet: FleetObservation) -> int:
    """Return how many jobs run there. A record knows of a claim before the next heartbeat does."""
    return max(len(heartbeat.running) if heartbeat else 0, fleet.active_jobs.get(host, 0))


def _ready_s(record: PowerRecord, fleet: FleetObservation) -> float:
    left_s = views.wake_left_s(record, fleet.at)
    return DEFAULT_WAKE_S if left_s is None else left_s


def _is_stop_undone(record: PowerRecord) -> bool:
    """Return whether the host is stopping, and the stop call has not succeeded yet."""
    result = record.call.result if record.call else None
    is_done = result is not None and result.outcome is PowerCallOutcome.DONE
    return record.state is PowerState.STOPPING and not is_done
