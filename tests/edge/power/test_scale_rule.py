"""The rule that decides how many hosts a pool needs, spelled out: jobs and hosts in, hosts to wake or to let go out."""

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.power.scale_rule import DEFAULT_POOL, FleetHost, FleetPlan, HostPhase, PoolDemand, plan_fleet
from schemas.host_config import PoolConfig
from schemas.settings_loader import SettingsInvalid, load_settings

UP, DRAINS, COMES, DARK, FAILED = HostPhase

MINUTE = 60.0
FEW = PoolDemand(wake_jobs=3, waiting_jobs=3, run_s=MINUTE)
BURST = PoolDemand(wake_jobs=500, waiting_jobs=500, run_s=MINUTE)


def host(name: str, phase: HostPhase = DARK, slots: int = 1, pools: str = "a", **fields: Any) -> FleetHost:
    ready_s = 0.0 if phase in {UP, DRAINS} else 120.0
    return FleetHost(name, phase, dict.fromkeys(pools, slots), **{"ready_s": ready_s, **fields})


def jobs(waiting: int, **fields: Any) -> PoolDemand:
    return PoolDemand(**{"wake_jobs": waiting, "waiting_jobs": waiting, "run_s": MINUTE, **fields})


def plan(demand: PoolDemand, hosts: list[FleetHost], **rule: Any) -> FleetPlan:
    return plan_fleet({"a": demand}, hosts, {"a": PoolConfig(**rule)} if rule else {})


def never_seen(name: str, **fields: Any) -> FleetHost:
    return FleetHost(name, DARK, None, ready_s=120.0, **fields)


THREE = [host("x"), host("y"), host("z")]

# Of one pool: its jobs, its hosts, its rule, and the names of the hosts that are woken.
WOKEN: list[tuple[str, PoolDemand, list[FleetHost], dict[str, Any], str]] = [
    ("no jobs", jobs(0), THREE, {}, ""),
    ("one job is one host, as ever", jobs(1), THREE, {}, "x"),
    ("so are a few", FEW, THREE, {}, "x"),
    ("a burst wakes all at once", BURST, THREE, {}, "xyz"),
    ("what starts within ten minutes after two of waking", jobs(9), THREE, {}, "x"),
    ("one job more", jobs(10), THREE, {}, "xy"),
    ("a shorter target", FEW, THREE, {"target_wait_s": 150.0}, "xyz"),
    ("at least one job a slot, also if no boot is that fast", FEW, [*THREE, host("w")], {"target_wait_s": 1.0}, "wxy"),
    ("shorter runs", jobs(10, run_s=1.0), THREE, {}, "x"),
    ("a host that is up and idle serves", FEW, [host("x", UP), host("y")], {}, ""),
    ("a burst fans out beside a host that is up", BURST, [host("x", UP), host("y"), host("z")], {}, "yz"),
    ("as many as start in ten minutes", jobs(11), [host("x", UP), host("y")], {}, ""),
    ("one more", jobs(12), [host("x", UP), host("y")], {}, "y"),
    ("an occupied slot starts fewer", jobs(11), [host("x", UP, occupied=1), host("y")], {}, "y"),
    ("long runs: one waits, all are busy", jobs(1, run_s=7200.0), [host("x", UP, occupied=1), host("y")], {}, "y"),
    ("long runs: one waits, a slot is free", jobs(1, run_s=7200.0), [host("x", UP), host("y")], {}, ""),
    ("a host on its way is not woken twice, and counts", FEW, [host("x", COMES), host("y")], {}, "x"),
    ("it counts only for what it can start", BURST, [host("x", COMES), host("y"), host("z")], {}, "xyz"),
    ("one on its way that is not needed is let go", FEW, [host("x", UP), host("y", COMES)], {}, ""),
    ("a host in fault is replaced, and tried further", FEW, [host("x", FAILED), host("y"), host("z")], {}, "xy"),
    ("it is not tried while a better one serves", FEW, [host("x", FAILED), host("y", UP)], {}, ""),
    ("nor for one that is woken before it", FEW, [host("x"), host("y", FAILED)], {}, "x"),
    ("it is tried when there is no other", FEW, [host("x", FAILED)], {}, "x"),
    ("another pool", FEW, [host("x", pools="b")], {}, ""),
    ("a host that cannot serve it now is replaced", FEW, [host("x", UP, pools=""), host("y")], {}, "y"),
    ("the lowest rank", FEW, [host("x", wake_priority=2), host("y")], {}, "y"),
    ("the rank before the price", FEW, [host("x", hourly_cost=9.0), host("y", wake_priority=2)], {}, "x"),
    ("the price of equal ranks", FEW, [host("x", hourly_cost=2.0), host("y", hourly_cost=1.0)], {}, "y"),
    ("of equal prices one that may be stopped again", FEW, [host("x", was_stopped_lately=True), host("y")], {}, "y"),
    (
        "the price before that",
        FEW,
        [host("x", was_stopped_lately=True, hourly_cost=1.0), host("y", hourly_cost=2.0)],
        {},
        "x",
    ),
    ("that before the VRAM", FEW, [host("x", was_stopped_lately=True, vram_mb=24_000), host("y")], {}, "y"),
    ("then the most VRAM", FEW, [host("x", vram_mb=8_000), host("y", vram_mb=24_000)], {}, "y"),
    ("fewer hosts for the same money", jobs(18), [host("x"), host("y"), host("z", slots=2)], {}, "z"),
    (
        "the cheapest set, not the cheapest hosts",
        jobs(18),
        [host("x", hourly_cost=2.0), host("y", hourly_cost=2.0), host("z", slots=2, hourly_cost=3.0)],
        {},
        "z",
    ),
    (
        "one expensive host where `max` allows no more",
        jobs(12, run_s=180.0),
        [host("x", slots=4, hourly_cost=100.0), *(host(name, slots=2, hourly_cost=1.0) for name in "yz")],
        {"max": 1},
        "x",
    ),
    (
        "one expensive host that suffices, although the cheapest set has more hosts than `max`",
        jobs(12, run_s=180.0),
        [host("w", slots=4, hourly_cost=100.0), *(host(name, slots=1, hourly_cost=1.0) for name in "uvxyz")],
        {"max": 2},
        "w",
    ),
    ("never seen: it may offer anything", FEW, [never_seen("x")], {}, "x"),
    ("never seen: after a known one", FEW, [never_seen("x"), host("y")], {}, "y"),
    ("never seen: a lower rank all the same", FEW, [never_seen("x"), host("y", wake_priority=2)], {}, "x"),
    ("never seen: all for a burst", BURST, [never_seen("x"), never_seen("y"), host("z")], {}, "xyz"),
    ("max", BURST, THREE, {"max": 2}, "xy"),
    ("max with one up", BURST, [host("x", UP), host("y"), host("z")], {"max": 2}, "y"),
    ("max with one on its way", BURST, [host("x", COMES), host("y"), host("z")], {"max": 2}, "xy"),
    ("max counts no host in fault", BURST, [host("x", FAILED), host("y"), host("z")], {"max": 2}, "xyz"),
    ("min without jobs", jobs(0), THREE, {"min": 2}, "xy"),
    ("min with one up", jobs(0), [host("x", UP), host("y"), host("z")], {"min": 2}, "y"),
    ("min with one on its way", jobs(0), [host("x", COMES), host("y"), host("z")], {"min": 2}, "xy"),
    ("min is not added to the demand", FEW, THREE, {"min": 1}, "x"),
    ("min replaces a host in fault", jobs(0), [host("x", FAILED), host("y")], {"min": 1}, "xy"),
    ("quota: one at a time is one host", jobs(500, concurrency=1), THREE, {}, "x"),
    ("quota: two at a time are two", jobs(500, concurrency=2), THREE, {}, "xy"),
    ("quota: one that is up is enough", jobs(500, concurrency=1), [host("x", UP, occupied=1), host("y")], {}, ""),
    ("low jobs alone", PoolDemand(0, 500), THREE, {}, ""),
    ("done before it is up", jobs(5, run_s=10.0), [host("x", UP, occupied=1), host("y")], {"target_wait_s": 15.0}, ""),
]


@pytest.mark.parametrize(("demand", "hosts", "rule", "woken"), [case[1:] for case in WOKEN], ids=[c[0] for c in WOKEN])
def test_hosts_are_woken_as_the_table_says(
    demand: PoolDemand, hosts: list[FleetHost], rule: dict[str, Any], woken: str
) -> None:
    assert "".join(sorted(plan(demand, hosts, **rule).wake)) == woken


ALL_UP = [host("x", UP), host("y", UP), host("z", UP)]
BUSY = [host("x", UP, occupied=1), host("y", UP), host("z", UP, occupied=1)]

# The same, with the hosts that the others make superfluous, the first to go first.
SUPERFLUOUS: list[tuple[str, PoolDemand, list[FleetHost], dict[str, Any], str]] = [
    ("without jobs one remains", jobs(0), ALL_UP, {}, "zy"),
    ("the emptiest goes first", jobs(0), [host("x", UP), host("y", UP, occupied=1), host("z", UP)], {}, "zx"),
    ("the load needs them", jobs(0, load=2.5), ALL_UP, {}, ""),
    ("two bear it", jobs(0, load=1.8), BUSY, {}, "y"),
    ("but not with more than nine tenths of their time", jobs(0, load=1.81), BUSY, {}, ""),
    ("waiting jobs need them", jobs(23), ALL_UP, {}, ""),
    ("two can start them", jobs(22), ALL_UP, {}, "z"),
    ("low jobs keep hosts on", PoolDemand(0, 23, MINUTE), ALL_UP, {}, ""),
    ("min", jobs(0), ALL_UP, {"min": 2}, "z"),
    ("one that stays on anyway", jobs(0), [host("x", UP), host("y", UP, is_fixed=True)], {}, "x"),
    ("another pool has a host of its own", jobs(0), [host("x", UP), host("y", UP, pools="b")], {}, ""),
    (
        "the dearer of two equal ones",
        jobs(0),
        [host("x", UP, hourly_cost=2.0), host("y", UP, hourly_cost=1.0)],
        {},
        "x",
    ),
]


@pytest.mark.parametrize(
    ("demand", "hosts", "rule", "names"), [case[1:] for case in SUPERFLUOUS], ids=[case[0] for case in SUPERFLUOUS]
)
def test_hosts_are_superfluous_as_the_table_says(
    demand: PoolDemand, hosts: list[FleetHost], rule: dict[str, Any], names: str
) -> None:
    assert "".join(plan(demand, hosts, **rule).surplus) == names


def test_a_host_that_drains_is_taken_back_before_another_is_woken() -> None:
    drains, dark = host("x", DRAINS), host("y")
    assert plan(FEW, [drains, dark]) == FleetPlan({}, frozenset("x"), frozenset(), ())
    assert plan(BURST, [drains, dark]).wake.keys() == {"y"}
    assert plan(FEW, [drains, host("y", UP)]).resumed == frozenset()
    assert plan(jobs(0), [drains, dark], min=1).resumed == frozenset("x")
    assert plan(PoolDemand(0, 1), [drains, dark]).resumed == frozenset("x"), "a low job ends a drain"


def test_min_reserves_the_fullest_hosts() -> None:
    assert plan(jobs(0), BUSY, min=2).reserved == frozenset("xz")
    assert plan(jobs(0), BUSY).reserved == frozenset()


def test_pools_of_one_host_share_it() -> None:
    both = [host("x", UP, pools="ab"), host("y", pools="ab")]
    ten = jobs(10)
    assert plan_fleet({"a": ten}, both, {}).wake == {}
    assert plan_fleet({"a": ten, "b": ten}, both, {}).wake.keys() == {"y"}


@pytest.mark.parametrize("phase", [DARK, COMES])
def test_a_host_gives_other_pools_all_that_one_pool_leaves(phase: HostPhase) -> None:
    """Each host starts 10 jobs: 16 jobs need two hosts, and the second host serves both pools."""
    hosts = [host("x", phase, pools="ab"), host("y", phase, pools="ab"), host("z", pools="ab")]
    runs = {"run_s": 53.0}
    assert hosts[0].startable_jobs("a", within_s=DEFAULT_POOL.target_wait_s, **runs) == 10
    assert plan_fleet({"a": jobs(11, **runs), "b": jobs(5, **runs)}, hosts, {}).wake.keys() == {"x", "y"}


def test_a_host_that_one_pool_occupies_does_not_finish_the_jobs_of_another() -> None:
    """Host x could start 3 jobs before y is up, but pool a takes 10 of the 11 that it can start in time."""
    both = [host("x", UP, pools="ab"), host("y", pools="ab")]
    assert plan_fleet({"b": jobs(3)}, both, {}).wake == {}
    assert plan_fleet({"a": jobs(10), "b": jobs(3)}, both, {}).wake.keys() == {"y"}


def test_what_people_read_tells_why() -> None:
    assert plan(FEW, THREE).wake == {"x": "a job waits for it"}
    why = "500 jobs wait in pool a: fewer hosts cannot start them within 600 s"
    assert plan(BURST, THREE).wake == dict.fromkeys("xyz", why)
    why = "1 job waits in pool a: fewer hosts cannot start it within 600 s"
    assert plan(jobs(1, run_s=7200.0), [host("x", UP, occupied=1), host("y")]).wake == {"y": why}
    assert plan(jobs(0), THREE, min=2).wake == dict.fromkeys("xy", "pool a keeps 2 hosts on")
    assert plan(jobs(0), THREE, min=1).wake == {"x": "pool a keeps 1 host on"}


FLEETS = st.lists(
    st.builds(
        FleetHost,
        name=st.uuids().map(str),
        phase=st.sampled_from(HostPhase),
        slots=st.fixed_dictionaries({"a": st.integers(1, 4)}),
        occupied=st.integers(0, 4),
        ready_s=st.sampled_from([0.0, 60.0, 300.0]),
        wake_priority=st.just(1),
        hourly_cost=st.sampled_from([0.0, 1.0, 1.5, 4.0]),
        vram_mb=st.sampled_from([0, 8_000, 24_000]),
        is_fixed=st.booleans(),
    ),
    max_size=7,
    unique_by=lambda one: one.name,
)


@settings(deadline=None)  # a loaded machine may take longer than the default for one example
@given(
    hosts=FLEETS,
    waiting=st.integers(0, 200),
    run_s=st.sampled_from([1.0, 60.0, 3600.0]),
    limit=st.none() | st.integers(1, 4),
)
def test_the_set_is_sufficient_and_none_is_cheaper(
    hosts: list[FleetHost], waiting: int, run_s: float, limit: int | None
) -> None:
    """Compare with all sets of dark hosts that `max` allows."""

    def startable(some: tuple[FleetHost, ...]) -> int:
        return sum(one.startable_jobs("a", run_s, DEFAULT_POOL.target_wait_s) for one in some)

    def cost(some: tuple[FleetHost, ...]) -> tuple[float, int]:
        return round(sum(one.hourly_cost for one in some), 6), len(some)

    made = plan(jobs(waiting, run_s=run_s), hosts, max=limit)
    dark = [one for one in hosts if one.phase is DARK]
    woken = tuple(one for one in dark if one.name in made.wake)
    given_jobs = startable(tuple(one for one in hosts if one.phase in {UP, DRAINS, COMES}))
    others = sum(one.phase in {UP, DRAINS, COMES} for one in hosts)
    room = len(dark) if limit is None else min(len(dark), max(0, limit - others))
    sets = [some for size in range(room + 1) for some in itertools.combinations(dark, size)]
    sufficient = [some for some in sets if given_jobs + startable(some) >= waiting]
    if woken and not sufficient:
        assert len(woken) == room
        assert startable(woken) == max(map(startable, sets))
    if woken and sufficient:
        assert cost(woken) == min(map(cost, sufficient))
    if sufficient and not woken and waiting > given_jobs:
        assert any(one.phase is UP or one.phase is DRAINS for one in hosts), "the hosts that are on finish first"


@settings(deadline=None)
@given(hosts=FLEETS, waiting=st.integers(0, 100), load=st.floats(0.0, 20.0))
def test_the_hosts_that_remain_suffice(hosts: list[FleetHost], waiting: int, load: float) -> None:
    demand = jobs(waiting, load=load)
    serving = [one for one in hosts if one.phase is UP]
    remaining = [one for one in serving if one.name not in plan(demand, hosts).surplus]
    assert bool(remaining) is bool(serving)
    if len(remaining) < len(serving):
        wait_s = DEFAULT_POOL.target_wait_s
        assert sum(one.startable_jobs("a", demand.run_s, wait_s) for one in remaining) >= waiting
        assert sum(one.slots["a"] for one in remaining if one.slots) * 0.9 >= load - 1e-6


def test_a_rule_that_contradicts_itself_is_refused() -> None:
    from edge.settings import EdgeSettings

    text = "[pools.lipsync]\nmin = 1\nmax = 3\ntarget_wait_s = 120\ncool_down_s = 300\n"
    assert load_settings(EdgeSettings, text, {}).pools == {"lipsync": PoolConfig(1, 3, 120.0, 300.0)}
    for wrong, why in (("min = 4", "must not be smaller"), ("max = 0", "max"), ("mx = 1", "mx")):
        with pytest.raises(SettingsInvalid, match=why):
            load_settings(EdgeSettings, f"[pools.lipsync]\nmax = 3\n{wrong}\n".replace("max = 3\nmax", "max"), {})
