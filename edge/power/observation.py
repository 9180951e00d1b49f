"""Reads what the power rules judge by: heartbeats, jobs by pool, and the jobs that each host runs.

`FleetObserver` reads everything once per tick. `host_facts` turns this into a plan and into the facts of each host.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Set
from datetime import datetime, timedelta
from typing import NamedTuple

from msgspec import Struct

from bus.interface import Bus
from edge.core.clock import Clock, micros
from edge.hosts.endpoints import EndpointRegistry
from edge.hosts.registry import HostRegistry
from edge.index import sqlite as sql
from edge.index.index import JobCountKey, JobIndex
from edge.power.scale_rule import DEFAULT_RUN_S
from schemas.endpoint import Endpoint
from schemas.host import HOST_GONE_TIMEOUT_S, HostCapabilities, HostHeartbeat
from schemas.job import ACTIVE_STATUSES, FINAL_STATUSES, WAITING_STATUSES, Priority, Status, WaitReason

_ACTIVE_JOBS_LIMIT = 1_000_000  # running jobs are bounded by the slots, and each must be read
_SOON_JOBS_LIMIT = 500  # enough to see that jobs are due soon, and about how many

# Filters of the index; `:at` is the current time plus the wake time of a host.
DUE_SOON_FILTER = "status = 'scheduled' AND priority <> 'low' AND (due_us IS NULL OR due_us <= :at)"
LOW_NEAR_DEADLINE_FILTER = "status IN ('queued', 'scheduled') AND priority = 'low' AND expires_us <= :at"

# Reasons that do not end when the current job ends.
UNSERVABLE_REASONS = frozenset(
    {
        WaitReason.ENGINE_AWAY,
        WaitReason.HOST_ENDING,
        WaitReason.GPU_NONE,
        WaitReason.REQUIREMENT_UNMET,
        WaitReason.GPU_UNHEALTHY,
        WaitReason.IMAGE_MISSING,
        WaitReason.VOLUME_MISSING,
    }
)
WAKING_PRIORITIES = frozenset(Priority) - {Priority.LOW}


class PoolJobs(Struct, frozen=True):
    """The jobs of a pool. Waiting jobs of a paused endpoint do not count.

    `wake`: waiting jobs for which hosts are woken: ready or soon so, and not of priority `low`, unless the deadline is
    near. `waiting`: all that are ready, or will be soon. `running`: those that occupy a slot. `run_s`: their usual run
    time. `concurrency`: how many may run at once by the quotas of their owners; None: as many as there are.
    """

    wake: int = 0
    waiting: int = 0
    running: int = 0
    run_s: float = DEFAULT_RUN_S
    concurrency: int | None = None


class HostOffer(Struct, frozen=True):
    """The last offer of a host. `slots`: by pool, as many jobs of it as fit at once. `vram_mb`: of all its GPUs.

    An endpoint whose requirements the host does not meet does not count.
    """

    slots: Mapping[str, int]
    vram_mb: int = 0


class FleetObservation(Struct, frozen=True, kw_only=True):
    """The knowledge of this edge about all hosts at the time `at`.

    `pools`: by pool that has jobs. `offers`: by host that was ever seen. `servable_pools`: by online host, those that
    it can serve. `active_jobs`: by host, the number of jobs recorded as running or cancelling there. `in_maintenance`:
    the hosts that are. `unreadable`: hosts whose heartbeat this edge cannot read: they are online, and nothing else is
    known of them.
    """

    at: datetime
    absence_counts: bool
    heartbeats: Mapping[str, HostHeartbeat]
    offers: Mapping[str, HostOffer]
    servable_pools: Mapping[str, frozenset[str]]
    pools: Mapping[str, PoolJobs]
    active_jobs: Mapping[str, int]
    in_maintenance: frozenset[str] = frozenset()
    unreadable: frozenset[str] = frozenset()

    @property
    def online_hosts(self) -> frozenset[str]:
        """The hosts that send heartbeats."""
        return self.unreadable | self.heartbeats.keys()

    @property
    def waiting_pools(self) -> frozenset[str]:
        """The pools with jobs that are ready, or will be soon."""
        return frozenset(pool for pool, jobs in self.pools.items() if jobs.waiting)


class _SearchedJobs(NamedTuple):
    """Jobs that the counts of the index do not show: by pool those due soon, low ones near their deadline, and those
    whose host is gone; and by host the number of active jobs.
    """

    soon: Mapping[str, int]
    low_due: Mapping[str, int]
    lost: Mapping[str, int]
    active_jobs: Mapping[str, int]


def _no_run_time(_endpoint: str) -> float | None:
    """Return None: no run time is known."""
    return None


def _no_running_limit(_owner: str) -> int:
    """Return 0: no owner has a limit."""
    return 0


class FleetObserver:
    """Reads heartbeats, offers and jobs from the bus and the index.

    `usual_run_s`: the usual run time of an endpoint, None if it is not known. `running_limit`: how many jobs of an
    owner may run; 0: any number.
    """

    def __init__(  # noqa: PLR0913 - four services and three functions that it calls
        self,
        *,
        bus: Bus,
        index: JobIndex,
        hosts: HostRegistry,
        endpoints: EndpointRegistry,
        now: Clock,
        usual_run_s: Callable[[str], float | None] = _no_run_time,
        running_limit: Callable[[str], int] = _no_running_limit,
    ) -> None:
        self._bus = bus
        self._index = index
        self._hosts = hosts
        self._endpoints = endpoints
        self._now = now
        self._usual_run_s = usual_run_s
        self._running_limit = running_limit

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
        rows = await self._bus.heartbeats.rows()
        present = {host: row.value for host, row in rows.items()}
        pointed = await self._pointer_pools() if include_queue else set()
        searched = await self._search_index(lead_s)
        return FleetObservation(
            at=self._now(),
            absence_counts=self._index.is_caught_up and self._bus.health.uptime_s() >= HOST_GONE_TIMEOUT_S,
            heartbeats=present,
            offers={offer.host: _summarize_offer(offer) for offer in self._endpoints.host_capabilities()},
            servable_pools={host: self._servable_pools(heartbeat) for host, heartbeat in present.items()},
            pools=self._count_pools(searched, pointed),
            active_jobs=searched.active_jobs,
            in_maintenance=self._hosts.pauses.hosts_in_maintenance,
            unreadable=frozenset(rows.unreadable),
        )

    def _count_pools(self, searched: _SearchedJobs, pointed: Set[str]) -> dict[str, PoolJobs]:
        counts = {key: count for key, count in self._index.count_jobs().items() if key.status not in FINAL_STATUSES}
        startable = {key: count for key, count in counts.items() if not self._is_paused(key)}
        queued = _sum_by_pool(startable, {Status.QUEUED})
        running = _sum_by_pool(counts, ACTIVE_STATUSES)
        above_low = self._index.queue_ranks.count_by_pool(WAKING_PRIORITIES)
        own: defaultdict[str, dict[JobCountKey, int]] = defaultdict(dict)
        for key, count in startable.items():
            own[key.pool][key] = count
        pools = {}
        for pool in {key.pool for key in counts} | pointed:
            ready = searched.soon.get(pool, 0) + searched.lost.get(pool, 0)
            wake = min(above_low.get(pool, 0), queued[pool]) + ready + searched.low_due.get(pool, 0)
            waiting = max(wake, queued[pool] + ready)
            pools[pool] = PoolJobs(
                wake=wake if pool in own else 0,
                waiting=max(waiting if pool in own else 0, int(pool in pointed)),
                running=running[pool],
                run_s=self._pool_run_s(own[pool]),
                concurrency=self._quota_concurrency(own[pool]),
            )
        return pools

    def _is_paused(self, key: JobCountKey) -> bool:
        return self._hosts.pauses.of_endpoint(key.endpoint) is not None

    def _pool_run_s(self, counts: Mapping[JobCountKey, int]) -> float:
        """Return the mean of the usual run times of the jobs."""
        times = [(self._usual_run_s(key.endpoint) or DEFAULT_RUN_S, count) for key, count in counts.items()]
        total = sum(count for _, count in times)
        return sum(run_s * count for run_s, count in times) / total if total else DEFAULT_RUN_S

    def _quota_concurrency(self, counts: Mapping[JobCountKey, int]) -> int | None:
        """Return how many of the jobs may run at once by the quotas of their owners; None if no quota limits them."""
        by_owner: Counter[str] = Counter()
        for key, count in counts.items():
            by_owner[key.owner] += count
        limits = {owner: self._running_limit(owner) for owner in by_owner}
        if not any(limits.values()):
            return None
        return sum(min(count, limits[owner] or count) for owner, count in by_owner.items())

    async def _search_index(self, lead_s: float) -> _SearchedJobs:
        """Search the index, but only for statuses that its counts show."""
        statuses = {count.status for count in self._index.count_jobs()}
        has_low = bool(self._index.queue_ranks.count_by_pool({Priority.LOW}))
        has_scheduled = Status.SCHEDULED in statuses
        at = micros(self._now() + timedelta(seconds=lead_s))
        soon, low_due = dict[str, int](), dict[str, int]()
        if has_scheduled:
            soon = await self._index.count_by_pool(DUE_SOON_FILTER, at, _SOON_JOBS_LIMIT)
        if has_low or has_scheduled:
            low_due = await self._index.count_by_pool(LOW_NEAR_DEADLINE_FILTER, at, _SOON_JOBS_LIMIT)
        lost, active_jobs = await self._active_jobs() if statuses & ACTIVE_STATUSES else (Counter(), Counter())
        return _SearchedJobs(soon, low_due, lost, active_jobs)

    async def _active_jobs(self) -> tuple[Counter[str], Counter[str]]:
        """Return the number of jobs whose host is gone by pool, and the number of active jobs by host."""
        lost: Counter[str] = Counter()
        active_jobs: Counter[str] = Counter()
        for entry in await self._index.find_jobs(sql.ACTIVE, micros(self._now()), _ACTIVE_JOBS_LIMIT):
            job = entry.record.job
            if job.claim is None:
                continue
            active_jobs[job.claim.host] += 1
            if self._hosts.gone_for(job.claim) is not None:
                lost[job.pool] += 1
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
        offering = self._endpoints.hosts_offering(endpoint) - self._endpoints.unmet(endpoint).keys()
        wakeable = set(declared) - self._hosts.pauses.hosts_in_maintenance
        return {host for host in wakeable if host in offering or self._endpoints.capabilities_of(host) is None}


def _sum_by_pool(counts: Mapping[JobCountKey, int], statuses: Set[Status]) -> Counter[str]:
    total: Counter[str] = Counter()
    for key, count in counts.items():
        if key.status in statuses:
            total[key.pool] += count
    return total


def _summarize_offer(offer: HostCapabilities) -> HostOffer:
    slots: dict[str, int] = {}
    for endpoint in offer.endpoints:
        if endpoint.name in offer.unmet:
            continue
        pool, fitting = endpoint.effective_pool, _fitting_jobs(offer, endpoint)
        slots[pool] = min(slots.get(pool, fitting), fitting)
    return HostOffer(slots, sum(gpu.memory_total_mb or 0 for gpu in offer.gpus))


def _fitting_jobs(offer: HostCapabilities, endpoint: Endpoint) -> int:
    """Return how many jobs of the endpoint fit on the host at once: by its slots, and by the VRAM of its GPUs."""
    needed = endpoint.resources
    if not (needed.gpus and needed.vram_mb and offer.gpus):
        return offer.slots
    parts = sum((gpu.memory_total_mb or needed.vram_mb) // needed.vram_mb for gpu in offer.gpus)
    return max(1, min(offer.slots, parts // needed.gpus))
