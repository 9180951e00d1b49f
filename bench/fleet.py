"""Measure the rule of pools: the cost of a fleet against hindsight, the waits of jobs, and the power cycles of hosts.

The first part runs in virtual time, with the real decisions (`bench.fleet_simulation`). The hindsight optimum knows all
jobs beforehand: the cheapest schedule of the same hosts in which every job starts within the target. It is exact on the
grid of a minute on which all jobs come and run. The limit of one power cycle an hour enters it as a Lagrangian
relaxation, so that the optimum is a lower bound. Where all hosts together cannot meet the target, its target is the
wait that they can meet.

The jobs of the trickles come one to three and two to four minutes apart. Hindsight powers a host off in each gap that
is longer than a boot, and lets jobs wait so that gaps become longer. No rule that must guess can do that
(docs/decisions/108-rare-jobs-cost-what-guessing-costs.md). So the cost of jobs that come at random has no limit.
"""

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from bench.figures import Figure
from bench.fleet_simulation import POOL, STEP_S, STOP_S, FleetSimulation, SimulatedHost, SimulatedJob
from bench.power import measure_starts
from schemas.host_config import CommandHostConfig, PoolConfig

MINUTE, HOUR = 60.0, 3600.0
BOOT_S = 120.0
DECLARED_HOSTS = 50
LOOKS_S = 2 * STEP_S  # until an edge and a runner have seen a change
COST_LIMIT = 1.25  # against the hindsight optimum
CYCLES_LIMIT = 1  # of a host in an hour
PRICES = (0.0, 120.0, 150.0, 480.0)  # of a start, for the Lagrangian relaxation: the best of them bounds the cost
RULE = PoolConfig(target_wait_s=300.0, cool_down_s=300.0)
TRICKLE_RULE = PoolConfig(target_wait_s=150.0, cool_down_s=300.0)
HOST = CommandHostConfig(on=("on",), off=("off",), state=("state",), timezone="UTC", idle_after=300.0, min_on=300.0)


class Scenario(Struct, frozen=True):
    """A load over `hours`. `arrivals`: minutes at which jobs come. `cost_limit`: against hindsight; None: no limit."""

    name: str
    hours: float
    arrivals: Callable[[random.Random, float], Iterator[int]]
    hosts: int = 3
    broken: int = 0
    edges: int = 1
    rule: PoolConfig = RULE
    cost_limit: float | None = COST_LIMIT


class ScenarioResult(Struct, frozen=True):
    """The outcome of a scenario. Costs are in hours of one host."""

    name: str
    jobs: int
    cost_h: float
    optimum_h: float
    p95_wait_s: float
    wait_limit_s: float
    cycles: int
    first_starts: int
    cost_limit: float | None

    @property
    def ratio(self) -> float:
        """The cost against the hindsight optimum."""
        return self.cost_h / self.optimum_h


def _burst(_dice: random.Random, _hours: float) -> Iterator[int]:
    yield from [5] * 500


def _sawtooth(_dice: random.Random, hours: float) -> Iterator[int]:
    """Yield a load that rises from nothing to 2.8 hosts within two hours, and falls at once."""
    owed = 0.0
    for minute in range(int((hours - 0.5) * 60)):
        owed += 2.8 * (minute % 120) / 120
        while owed >= 1:
            owed -= 1
            yield minute


def _trickle(least: int, most: int, dice: random.Random, hours: float) -> Iterator[int]:
    """Yield a job every `least` to `most` minutes."""
    minute = 0
    while minute < (hours - 0.5) * 60:
        yield minute
        minute += dice.randint(least, most)


def _at_random(mean: float, dice: random.Random, hours: float) -> Iterator[int]:
    """Yield jobs that come independently of each other, one every `mean` minutes on average."""
    minute = 0.0
    while minute < (hours - 0.5) * 60:
        yield int(minute)
        minute += dice.expovariate(1 / mean)


SCENARIOS = (
    Scenario("burst", 4.0, _burst),
    Scenario("sawtooth", 8.5, _sawtooth),
    Scenario("trickle", 6.0, partial(_trickle, 1, 3), rule=TRICKLE_RULE),
    Scenario("a host that never boots", 4.0, _burst, hosts=4, broken=1, rule=replace(RULE, max=3)),
    Scenario("two edges", 8.5, _sawtooth, edges=2),
    Scenario("slower trickle", 6.0, partial(_trickle, 2, 4), rule=TRICKLE_RULE),
    Scenario("at random", 6.0, partial(_at_random, 3.0), rule=TRICKLE_RULE, cost_limit=None),
)


def play(scenario: Scenario, seed: int = 1) -> ScenarioResult:
    """Run the scenario in virtual time, until its hours are over and every job has ended."""
    minutes = list(scenario.arrivals(random.Random(seed), scenario.hours))
    hosts = [
        SimulatedHost(f"gpu-{number}", HOST, boot_s=BOOT_S, never_boots=number < scenario.broken)
        for number in range(scenario.hosts)
    ]
    jobs = [SimulatedJob(minute * MINUTE, MINUTE) for minute in minutes]
    fleet = FleetSimulation(hosts, jobs, {POOL: scenario.rule}, scenario.edges)
    fleet.run(scenario.hours * HOUR)
    able = scenario.hosts - scenario.broken
    late_s = HOST.boot_timeout + LOOKS_S  # after that a host that does not boot is replaced
    best_s = _best_waits(minutes, [BOOT_S + (late_s if n < scenario.broken else LOOKS_S) for n in range(able)])
    waits = sorted(job.wait_s for job in jobs)
    limit_s = max(scenario.rule.target_wait_s, _p95(best_s))
    target_s = max(scenario.rule.target_wait_s, best_s[-1])
    return ScenarioResult(
        name=scenario.name,
        jobs=len(jobs),
        cost_h=fleet.powered_s / HOUR,
        optimum_h=hindsight_optimum_s(minutes, able, target_s, scenario.hours) / HOUR,
        p95_wait_s=_p95(waits),
        wait_limit_s=limit_s,
        cycles=fleet.most_cycles_an_hour(),
        first_starts=len(fleet.looks[0]),
        cost_limit=scenario.cost_limit,
    )


def _p95(ascending: Sequence[float]) -> float:
    return ascending[min(len(ascending) - 1, int(len(ascending) * 0.95))]


def _best_waits(minutes: Sequence[int], ready_s: Sequence[float]) -> list[float]:
    """Return the waits if all hosts are up so long after the first job and stay on, in ascending order."""
    free_s = [min(minutes) * MINUTE + ready for ready in ready_s]
    waits = []
    for came_s in (minute * MINUTE for minute in sorted(minutes)):
        first = min(range(len(free_s)), key=free_s.__getitem__)
        start_s = max(came_s, free_s[first])
        free_s[first] = start_s + MINUTE
        waits.append(start_s - came_s)
    return sorted(waits)


def hindsight_optimum_s(minutes: Sequence[int], hosts: int, target_s: float, hours: float) -> float:
    """Return the least seconds with power in which every job starts within `target_s`, as a lower bound."""
    starts_allowed = hosts * (int(hours) + 1)
    bounds = (
        _cheapest_schedule_s(minutes, hosts, int(target_s // MINUTE), price) - price * starts_allowed
        for price in PRICES
    )
    return max(bounds)


def _cheapest_schedule_s(minutes: Sequence[int], hosts: int, target: int, price: float) -> float:
    """Return the cost of the cheapest schedule, with `price` seconds for each start besides boot and shutdown.

    Dynamic programming over the minutes. A state is the number of hosts that are up and the number of waiting jobs. A
    job of a minute runs on each host that is up. Jobs that came `target` minutes ago must have started.
    """
    came = Counter(minutes)
    start_s = BOOT_S + STOP_S + price
    total, due = 0, 0
    best: dict[tuple[int, int], float] = {(0, 0): 0.0}
    for minute in range(max(minutes) + target + 1):
        total += came[minute]
        due += came[minute - target]
        after: dict[tuple[int, int], float] = {}
        for (up, waiting), cost in best.items():
            ready = waiting + came[minute]
            for number in range(hosts + 1):
                left = max(0, ready - number)
                if left > total - due:
                    continue
                paid = cost + number * MINUTE + max(0, number - up) * start_s
                if paid < after.get((number, left), float("inf")):
                    after[number, left] = paid
        best = after
    return min(cost for (_, left), cost in best.items() if left == 0)


def describe(result: ScenarioResult) -> Iterator[Figure]:
    """Yield the figures of a scenario."""
    cost = f"{result.cost_h:.2f} h of a host for {result.jobs} jobs, {result.optimum_h:.2f} h in hindsight"
    yield Figure("fleet", f"{result.name}: cost against hindsight", result.ratio, "x", result.cost_limit, note=cost)
    yield Figure("fleet", f"{result.name}: power cycles of a host in an hour", result.cycles, "", CYCLES_LIMIT)
    yield Figure("fleet", f"{result.name}: wait, p95", result.p95_wait_s, "s", result.wait_limit_s)


async def rows() -> AsyncIterator[Figure]:
    """Measure the scenarios in virtual time, then a wake with a real edge and broker."""
    for scenario in SCENARIOS:
        result = play(scenario)
        if scenario.name == "burst":
            yield Figure("fleet", "500 jobs, three dark hosts: starts in one look", result.first_starts, "", 3, True)
        for row in describe(result):
            yield row
    async for row in measure_starts("fleet", DECLARED_HOSTS):
        yield row
