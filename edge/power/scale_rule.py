"""Decide how many hosts each pool needs, and which: the hosts to wake, and those that the other hosts make superfluous.

Pure. A pool needs enough hosts for its last waiting job to start within `target_wait_s`. How many jobs its hosts can
start in that time depends on their slots, the jobs that occupy them, the usual run time, and the time until each host
is up. So hosts that are waking count, and a burst wakes several hosts in one decision.

A host of several pools gives each pool a share of its capacity: first the pool that the fewest hosts offer.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import Enum, auto
from typing import NamedTuple

from schemas.host_config import PoolConfig

DEFAULT_RUN_S = 60.0  # the run time of a pool of which too few runs are known
TARGET_UTILIZATION = 0.9  # hosts are kept until the others would be occupied for more than this part of the time
_MIN_RUN_S = 0.01
_COVERS_LIMIT = 200  # sets of hosts that are compared after each host


DEFAULT_POOL = PoolConfig()


class HostPhase(Enum):
    """Use of a host for waiting jobs.

    SERVING: it takes jobs. RESUMABLE: it drains, and takes jobs again as soon as it is needed. COMING: it is waking, or
    has been blocked for a short time. DARK: it can be woken. FAILED: it is in fault, has been blocked for longer than
    `fallback_after`, or did not boot; it is still tried, but its capacity does not count.
    """

    SERVING = auto()
    RESUMABLE = auto()
    COMING = auto()
    DARK = auto()
    FAILED = auto()


_UP_PHASES = frozenset({HostPhase.SERVING, HostPhase.RESUMABLE})


class FleetHost(NamedTuple):
    """A host as the rule judges it.

    `slots`: by pool that it offers; None if the host was never seen, so that it may offer any pool. `ready_s`: seconds
    until it is up, 0 if it is. `is_fixed`: it stays on whatever the pools need. `was_stopped_lately`: it was off within
    the last hour, so that no rule may stop it again soon.
    """

    name: str
    phase: HostPhase
    slots: Mapping[str, int] | None
    occupied: int = 0
    ready_s: float = 0.0
    wake_priority: int = 1
    hourly_cost: float = 0.0
    vram_mb: int = 0
    is_fixed: bool = False
    was_stopped_lately: bool = False

    def offers_pool(self, pool: str) -> bool:
        """Return whether the host may run jobs of the pool."""
        return self.slots is None or pool in self.slots

    def slots_of(self, pool: str) -> int:
        """Return how many jobs of the pool may run there at once; 1 if the host was never seen."""
        return 1 if self.slots is None else self.slots.get(pool, 0)

    @property
    def wake_order(self) -> tuple[int, bool, float, bool, int, str]:
        """The order in which hosts are woken if nothing else decides.

        A host that was stopped lately comes after its equals: once woken, it would stay on for the rest of the hour.
        """
        is_unseen, lately = self.slots is None, self.was_stopped_lately
        return self.wake_priority, is_unseen, self.hourly_cost, lately, -self.vram_mb, self.name

    def startable_jobs(self, pool: str, run_s: float, within_s: float) -> int:
        """Return how many jobs of the pool the host can start within the next `within_s` seconds.

        A job that runs is half done on average. A host that is not up yet counts with one job a slot at least: a target
        that is shorter than a boot must not count as out of reach.
        """
        slots = self.slots_of(pool)
        if self.phase in _UP_PHASES:
            busy = min(self.occupied, slots)
            return (slots - busy) * _starts(run_s, within_s) + busy * _starts(run_s, within_s - run_s / 2)
        return slots * max(1, _starts(run_s, within_s - self.ready_s))


def _starts(run_s: float, within_s: float) -> int:
    """Return how many jobs start one after the other in a free slot, the first at once."""
    return 0 if within_s < 0 else int(within_s / max(run_s, _MIN_RUN_S)) + 1


class PoolDemand(NamedTuple):
    """The jobs of a pool.

    `wake_jobs`: waiting jobs for which hosts are woken. `waiting_jobs`: all waiting jobs. `load`: the average number of
    jobs that have been running lately. `concurrency`: how many may run at once by the quotas of their owners.
    """

    wake_jobs: int = 0
    waiting_jobs: int = 0
    run_s: float = DEFAULT_RUN_S
    load: float = 0.0
    concurrency: int | None = None


class FleetPlan(NamedTuple):
    """The hosts that the pools need.

    `wake`: hosts to wake, each with the reason, and hosts that are waking already and are still needed. `resumed`:
    draining hosts that are needed. `reserved`: hosts that `min` keeps on. `surplus`: hosts that the others make
    superfluous, the first to go first.
    """

    wake: Mapping[str, str]
    resumed: frozenset[str]
    reserved: frozenset[str]
    surplus: tuple[str, ...]


def plan_fleet(
    demands: Mapping[str, PoolDemand], hosts: Collection[FleetHost], rules: Mapping[str, PoolConfig]
) -> FleetPlan:
    """Return what the pools in `demands` need, and those with a `min` in `rules`."""
    planner = _Planner(demands, hosts, rules)
    pools = set(demands) | {pool for pool, rule in rules.items() if rule.min}
    for pool in planner.scarcest_first(pools):
        planner.wake_for(pool)
    return FleetPlan(
        planner.wake, frozenset(planner.resumed), frozenset(planner.reserved), tuple(planner.find_surplus())
    )


class _Planner:
    """One plan while it is made. `shares`: which part of the capacity of each host no pool has taken yet."""

    def __init__(
        self, demands: Mapping[str, PoolDemand], hosts: Collection[FleetHost], rules: Mapping[str, PoolConfig]
    ) -> None:
        self._demands = demands
        self._hosts = sorted(hosts, key=lambda host: host.wake_order)
        self._rules = rules
        self._shares = {host.name: 1.0 for host in hosts}
        self.wake: dict[str, str] = {}
        self.resumed: set[str] = set()
        self.reserved: set[str] = set()

    def scarcest_first(self, pools: Iterable[str]) -> list[str]:
        """Return the pools, those first that the fewest hosts offer."""
        return sorted(pools, key=lambda pool: (sum(host.offers_pool(pool) for host in self._hosts), pool))

    def _rule(self, pool: str) -> PoolConfig:
        return self._rules.get(pool, DEFAULT_POOL)

    def _offering(self, pool: str, *phases: HostPhase) -> list[FleetHost]:
        return [host for host in self._hosts if host.phase in phases and host.offers_pool(pool)]

    def wake_for(self, pool: str) -> None:
        """Add the hosts that the pool needs: those that drain, those on their way, then the cheapest dark ones."""
        demand, rule, free_shares = self._demands.get(pool, PoolDemand()), self._rule(pool), dict(self._shares)
        wake_left, waiting_left = demand.wake_jobs, demand.waiting_jobs
        counted = self._offering(pool, HostPhase.SERVING)
        for host in counted:
            taken = self._take(host, pool, demand, waiting_left)
            wake_left, waiting_left = wake_left - taken, waiting_left - taken
        for host in self._offering(pool, HostPhase.RESUMABLE):
            if waiting_left > 0 or len(counted) < rule.min:
                counted.append(host)
                self.resumed.add(host.name)
                taken = self._take(host, pool, demand, waiting_left)
                wake_left, waiting_left = wake_left - taken, waiting_left - taken
        coming, wake_left = self._choose_coming(pool, demand, wake_left, counted)
        dark, wake_left = self._choose_dark(pool, demand, wake_left, [*counted, *coming], free_shares)
        chosen = coming + dark
        self._request(pool, demand, chosen, wake_left)
        kept_on = sorted(counted, key=_keep_order) + chosen
        self.reserved.update(host.name for host in kept_on[: rule.min])

    def _take(self, host: FleetHost, pool: str, demand: PoolDemand, jobs: int) -> int:
        """Assign at most `jobs` jobs of the pool to the host; return how many it can start in time."""
        capacity = host.startable_jobs(pool, demand.run_s, self._rule(pool).target_wait_s)
        taken = max(0, min(jobs, _part_of(capacity, self._shares[host.name])))
        if capacity:
            self._shares[host.name] -= taken / capacity
        return taken

    def _choose_coming(
        self, pool: str, demand: PoolDemand, wake_left: int, counted: Sequence[FleetHost]
    ) -> tuple[list[FleetHost], int]:
        """Return the hosts on their way that the pool still waits for, and how many jobs they leave."""
        rule = self._rule(pool)
        chosen: list[FleetHost] = []
        for host in self._offering(pool, HostPhase.COMING, HostPhase.DARK):
            is_on_its_way = host.phase is HostPhase.COMING or host.name in self.wake
            if is_on_its_way and (wake_left > 0 or len(counted) + len(chosen) < rule.min):
                chosen.append(host)
                wake_left -= self._take(host, pool, demand, wake_left)
        return chosen, wake_left

    def _choose_dark(
        self,
        pool: str,
        demand: PoolDemand,
        wake_left: int,
        counted: Sequence[FleetHost],
        free_shares: Mapping[str, float],
    ) -> tuple[list[FleetHost], int]:
        """Return the cheapest dark hosts that start `wake_left` jobs in time, at least `min`, and what they leave.

        `free_shares`: the part of the capacity of each host that the pools before this one have left.
        """
        rule = self._rule(pool)
        dark = [host for host in self._offering(pool, HostPhase.DARK) if host.name not in self.wake]
        on_their_way = {host.name for host in self._offering(pool, HostPhase.COMING)} | {one.name for one in counted}
        room = max(0, len(dark) if rule.max is None else rule.max - len(on_their_way))
        up = [(one, free_shares[one.name]) for one in counted if one.phase in _UP_PHASES]
        useful = [host for host in dark if not _is_done_before(host, pool, demand, up)]
        wake_left = min(wake_left, self._startable_by_quota(pool, demand, useful, counted))
        chosen: list[FleetHost] = []
        for tier in _tiers(useful):
            if wake_left <= 0 or room <= 0:
                break
            capacities = [host.startable_jobs(pool, demand.run_s, rule.target_wait_s) for host in tier]
            cover = _cheapest_cover(list(zip(tier, capacities, strict=True)), wake_left, room)
            chosen, room = chosen + cover, room - len(cover)
            for host in cover:
                wake_left -= self._take(host, pool, demand, wake_left)
        missing = max(0, rule.min - len(counted) - len(chosen))
        return chosen + [host for host in dark if host not in chosen][:missing], wake_left

    def _startable_by_quota(
        self, pool: str, demand: PoolDemand, dark: Sequence[FleetHost], counted: Sequence[FleetHost]
    ) -> int:
        """Return how many jobs the quotas of their owners let start on dark hosts, beside the hosts that count."""
        if demand.concurrency is None or not dark:
            return demand.wake_jobs
        slots = demand.concurrency - sum(host.slots_of(pool) for host in counted)
        soonest_s = min(host.ready_s for host in dark)
        return max(0, slots) * max(1, _starts(demand.run_s, self._rule(pool).target_wait_s - soonest_s))

    def _request(self, pool: str, demand: PoolDemand, chosen: Sequence[FleetHost], wake_left: int) -> None:
        """Request the chosen hosts, and the failed ones that come before the last of them."""
        if not chosen and wake_left <= 0:
            return
        last = max((host.wake_order for host in chosen), default=None)
        failed = [
            host
            for host in self._offering(pool, HostPhase.FAILED)
            if wake_left > 0 or last is None or host.wake_order <= last
        ]
        why = self._wake_reason(pool, demand, len(chosen))
        for host in (*chosen, *failed):
            self.wake.setdefault(host.name, why)

    def _wake_reason(self, pool: str, demand: PoolDemand, hosts: int) -> str:
        if not demand.wake_jobs:
            kept = self._rule(pool).min
            return f"pool {pool} keeps {kept} hosts on" if kept != 1 else f"pool {pool} keeps 1 host on"
        if hosts <= 1 and not self._offering(pool, HostPhase.SERVING):
            return "a job waits for it"
        target_s = self._rule(pool).target_wait_s
        if demand.wake_jobs == 1:
            return f"1 job waits in pool {pool}: fewer hosts cannot start it within {target_s:g} s"
        return f"{demand.wake_jobs} jobs wait in pool {pool}: fewer hosts cannot start them within {target_s:g} s"

    def find_surplus(self) -> list[str]:
        """Return the serving hosts that no pool needs, the emptiest first.

        For each pool that is served one host remains, even without jobs: `idle_after` decides on it.
        """
        serving = [host for host in self._hosts if host.phase is HostPhase.SERVING]
        offered = {pool for host in serving for pool in host.slots or ()}
        kept: set[str] = {host.name for host in serving if host.is_fixed}
        shares = {host.name: 1.0 for host in serving}
        pools = self.scarcest_first(offered)
        for pool in pools:
            self._keep_for(pool, serving, kept, shares)
        for pool in pools:
            offering = [host for host in serving if host.offers_pool(pool)]
            if offering and kept.isdisjoint(host.name for host in offering):
                kept.add(min(offering, key=_keep_order).name)
        return [host.name for host in sorted(serving, key=_keep_order, reverse=True) if host.name not in kept]

    def _keep_for(self, pool: str, serving: Sequence[FleetHost], kept: set[str], shares: dict[str, float]) -> None:
        """Add to `kept` the fullest hosts, until they can start the waiting jobs and bear the usual load."""
        demand, rule = self._demands.get(pool, PoolDemand()), self._rule(pool)
        waiting_left, load, count = demand.waiting_jobs, demand.load / TARGET_UTILIZATION, 0
        offering = [host for host in serving if host.offers_pool(pool)]
        for host in sorted(offering, key=lambda one: (one.name not in kept, *_keep_order(one))):
            if host.name not in kept and waiting_left <= 0 and load <= 0 and count >= rule.min:
                return
            kept.add(host.name)
            capacity = host.startable_jobs(pool, demand.run_s, rule.target_wait_s)
            slots = host.slots_of(pool)
            part = max(waiting_left / capacity if capacity else 1.0, load / slots if slots else 0.0, 0.0)
            share = shares[host.name]
            shares[host.name] -= min(part, share)
            waiting_left, load, count = waiting_left - _part_of(capacity, share), load - slots * share, count + 1


def _is_done_before(host: FleetHost, pool: str, demand: PoolDemand, up: Iterable[tuple[FleetHost, float]]) -> bool:
    """Return whether the hosts that are on, each with its share, will have started all jobs before this one is up."""
    started = (_part_of(one.startable_jobs(pool, demand.run_s, host.ready_s), share) for one, share in up)
    return sum(started) >= demand.wake_jobs


def _part_of(jobs: int, share: float) -> int:
    """Return how many of the jobs a share is; a share that arithmetic has made slightly too small loses none."""
    return int(jobs * share + 1e-6)


def _keep_order(host: FleetHost) -> tuple[bool, int, tuple[int, bool, float, bool, int, str]]:
    """Return the order in which hosts are kept on: the fullest first, then those that are woken first."""
    return not host.is_fixed, -host.occupied, host.wake_order


def _tiers(hosts: Iterable[FleetHost]) -> list[list[FleetHost]]:
    """Return the hosts by `wake_priority`; of equal ones, those that were seen before come first."""
    tiers: dict[tuple[int, bool], list[FleetHost]] = {}
    for host in hosts:
        tiers.setdefault((host.wake_priority, host.slots is None), []).append(host)
    return [tiers[key] for key in sorted(tiers)]


class _Cover(NamedTuple):
    """A set of hosts, what it costs, and how many jobs it starts."""

    hourly_cost: float
    size: int
    stopped_lately: int
    vram_mb: int
    jobs: int
    hosts: tuple[FleetHost, ...]

    @property
    def cost(self) -> tuple[float, int, int, int, int]:
        """The order of covers: money, number of hosts, the fewest stopped lately, then the most VRAM and jobs."""
        return self.hourly_cost, self.size, self.stopped_lately, -self.vram_mb, -self.jobs

    def add(self, host: FleetHost, jobs: int) -> "_Cover":
        """Return the set with one more host, which starts `jobs` jobs."""
        return _Cover(
            round(self.hourly_cost + host.hourly_cost, 9),
            self.size + 1,
            self.stopped_lately + host.was_stopped_lately,
            self.vram_mb + host.vram_mb,
            self.jobs + jobs,
            (*self.hosts, host),
        )


def _cheapest_cover(candidates: Sequence[tuple[FleetHost, int]], jobs: int, limit: int) -> list[FleetHost]:
    """Return the cheapest of at most `limit` candidates that start `jobs` jobs together, else the `limit` largest."""
    best = _search_cover(candidates, jobs, None)
    if best is not None and best.size > limit:
        best = _search_cover(candidates, jobs, limit)
    if best is not None:
        return list(best.hosts)
    chosen: list[FleetHost] = []
    for host, capacity in sorted(candidates, key=lambda one: (-one[1], one[0].wake_order))[:limit]:
        if jobs > 0:
            chosen.append(host)
            jobs -= capacity
    return sorted(chosen, key=lambda host: host.wake_order)


def _search_cover(candidates: Sequence[tuple[FleetHost, int]], jobs: int, limit: int | None) -> _Cover | None:
    """Return the cheapest set that starts `jobs` jobs, with at most `limit` hosts if that is not None.

    A set that another set makes useless is dropped. With a limit it returns None if none of the _COVERS_LIMIT sets
    that are kept after each host suffices; the largest hosts together may do so.
    """
    covers = [_Cover(0.0, 0, 0, 0, 0, ())]
    for host, capacity in candidates:
        larger = [cover.add(host, capacity) for cover in covers if cover.jobs < jobs and cover.size != limit]
        covers = _undominated(sorted((*covers, *larger), key=lambda cover: cover.cost), jobs, limit)
    return covers[-1] if covers[-1].jobs >= jobs else None


def _undominated(covers: Iterable[_Cover], jobs: int, limit: int | None) -> list[_Cover]:
    """Return the covers of which each starts more jobs than all cheaper ones, up to the first that suffices.

    With a limit a cover is compared only with those that have no more hosts: a smaller one leaves room for more.
    """
    kept: list[_Cover] = []
    most_jobs = [-1] * (1 if limit is None else limit + 1)  # by number of hosts, of the covers with no more hosts
    for cover in covers:
        size = 0 if limit is None else cover.size
        if cover.jobs > most_jobs[size]:
            kept.append(cover)
            most_jobs[size:] = [max(cover.jobs, most) for most in most_jobs[size:]]
        if cover.jobs >= jobs:
            break
    return [*kept[: _COVERS_LIMIT - 1], kept[-1]] if len(kept) > _COVERS_LIMIT else kept
