"""Why a host is on: each reason by hand, and that a host that is kept on always has one."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edge.core.messages import KEEP_REASON_TEXTS
from edge.power import state_machine
from edge.power.conditions import UNREADABLE_HEARTBEAT, HeartbeatFacts, HostFacts, PowerCase
from edge.power.views import KEEP_RULES, keep_reasons
from schemas.host import KeepReason as R
from schemas.host_config import CommandHostConfig, DailyBudget, PoolConfig
from schemas.job import Priority
from schemas.power import DailyOnTime, OnInterval, PowerOverride, PowerRecord, PowerState
from schemas.texts import Language
from tests.edge.power.power_rig import HOST, run_power_rig
from tests.edge.power.power_simulation import START

S = PowerState
RULES = CommandHostConfig(on=("on",), off=("off",), state=("state",), timezone="UTC", min_on=600.0, idle_after=900.0)
BEATS = HeartbeatFacts("life-1")
BUSY = HeartbeatFacts("life-1", unfinished_jobs=1)
USED = HeartbeatFacts("life-1", foreign_uses=frozenset({"users", "programs"}))
SETTLED = {"in_state_s": 600.0, "idle_s": 900.0}
QUEUED = {"in_state_s": 600.0, "has_queued_work": True}
STOPPED = {"on_intervals": (OnInterval(START - timedelta(hours=2), START - timedelta(minutes=15), ""),)}
SPENT = {"rules": replace(RULES, budget=DailyBudget(hours=1.0)), "daily_on_time": DailyOnTime("2026-11-21", 3600.0)}

# State, what differs, and the reasons, each with the seconds until it ends (None: that is not known).
CASES: list[tuple[str, S, dict[str, Any], dict[R, float | None]]] = [
    ("nothing keeps it on", S.ONLINE, SETTLED, {}),
    ("off", S.OFF, SETTLED, {}),
    ("maintenance", S.ONLINE, SETTLED | {"in_maintenance": True}, {R.MAINTENANCE: None}),
    ("the operator", S.ONLINE, SETTLED | {"override": PowerOverride("on")}, {R.OPERATOR: None}),
    (
        "the operator, for an hour",
        S.ONLINE,
        SETTLED | {"override": PowerOverride("on", START + timedelta(hours=1))},
        {R.OPERATOR: 3600.0},
    ),
    ("a job", S.ONLINE, {"in_state_s": 600.0, "heartbeat": BUSY}, {R.JOBS_RUN: None}),
    ("a heartbeat of a later release", S.ONLINE, SETTLED | {"heartbeat": UNREADABLE_HEARTBEAT}, {R.UNREADABLE: None}),
    ("a job by its record", S.ONLINE, {"in_state_s": 600.0, "active_jobs": 1}, {R.JOBS_RUN: None}),
    ("jobs wait", S.ONLINE, QUEUED | {"has_waking_work": True}, {R.JOBS_WAIT: None}),
    ("only low jobs wait", S.ONLINE, QUEUED, {R.LOW_JOBS_WAIT: None}),
    ("jobs wait for other hosts", S.ONLINE, SETTLED | {"has_queued_work": True, "is_released": True}, {}),
    ("users", S.ONLINE, {"in_state_s": 600.0, "heartbeat": USED}, {R.IN_USE: None}),
    ("min", S.ONLINE, SETTLED | {"is_reserved": True}, {R.POOL_MIN: None}),
    ("cool-down", S.ONLINE, SETTLED | {"cool_down_left_s": 60.0}, {R.COOL_DOWN: 60.0}),
    ("min_on", S.ONLINE, SETTLED | {"in_state_s": 500.0}, {R.MIN_ON: 100.0}),
    ("one cycle an hour", S.ONLINE, SETTLED | STOPPED | {"has_pool_rule": True}, {R.POWER_CYCLE: 2700.0}),
    ("no rule of a pool", S.ONLINE, SETTLED | STOPPED, {}),
    ("idle", S.ONLINE, {"in_state_s": 600.0, "idle_s": 300.0}, {R.IDLE_TIMER: 600.0}),
    ("an edge that knows too little", S.ONLINE, SETTLED | {"absence_counts": False}, {R.EDGE_NEW: None}),
    ("the budget, and a job", S.DRAINING, SPENT | {"heartbeat": BUSY}, {R.JOBS_RUN: None, R.PROHIBITED: None}),
    ("it drains", S.DRAINING, {}, {R.DRAINS: None}),
    (
        "several",
        S.ONLINE,
        {"in_state_s": 500.0, "heartbeat": BUSY, "has_queued_work": True, "has_waking_work": True},
        {R.JOBS_RUN: None, R.JOBS_WAIT: None, R.MIN_ON: 100.0},
    ),
]


def make_case(state: PowerState, differs: dict[str, Any]) -> PowerCase:
    facts = HostFacts(at=START, heartbeat=BEATS)
    own = {name: value for name, value in differs.items() if name in HostFacts.__struct_fields__}
    stored = {name: value for name, value in differs.items() if name not in {*own, "rules"}}
    record = PowerRecord(state=state, since=START, **stored)
    return PowerCase(record, replace(facts, **own), differs.get("rules", RULES))


@pytest.mark.parametrize(("state", "differs", "reasons"), [row[1:] for row in CASES], ids=[row[0] for row in CASES])
def test_the_reasons_by_hand(state: PowerState, differs: dict[str, Any], reasons: dict[R, float | None]) -> None:
    shown = keep_reasons(make_case(state, differs))
    left = {kept.reason: (kept.until - START).total_seconds() if kept.until else None for kept in shown}
    assert left == reasons


def test_each_reason_has_a_case_a_rule_and_texts() -> None:
    assert {reason for *_, reasons in CASES for reason in reasons} == set(R)
    assert {rule.reason for rules in KEEP_RULES.values() for rule in rules} == set(R)
    assert KEEP_REASON_TEXTS.keys() == set(R)


def test_the_texts_name_the_time_the_use_and_the_prohibition() -> None:
    def texts(state: PowerState, differs: dict[str, Any], language: Language) -> list[str]:
        return [kept.message for kept in keep_reasons(make_case(state, differs), language)]

    idle = {"in_state_s": 600.0, "idle_s": 300.0}
    assert texts(S.ONLINE, idle, Language.EN) == [
        "It is idle, and goes off at 2026-11-21 12:10:00 UTC if no job comes (idle_after)"
    ]
    assert texts(S.ONLINE, {"in_state_s": 600.0, "heartbeat": USED}, Language.EN) == [
        "Others use the machine: programs, users"
    ]
    assert texts(S.DRAINING, SPENT, Language.EN) == [
        "It goes off as soon as it is drained: its daily budget is used up"
    ]
    assert texts(S.DRAINING, SPENT, Language.ZH) == ["排空后立即关机：当日预算已用完"]


SECONDS = st.sampled_from([0.0, 300.0, 900.0])
FACTS = st.builds(
    HostFacts,
    at=st.just(START),
    absence_counts=st.booleans(),
    heartbeat=st.sampled_from([BEATS, BUSY, USED, UNREADABLE_HEARTBEAT]),
    has_queued_work=st.booleans(),
    has_waking_work=st.booleans(),
    active_jobs=st.integers(0, 1),
    in_maintenance=st.booleans(),
    is_reserved=st.booleans(),
    is_released=st.booleans(),
    has_pool_rule=st.booleans(),
    idle_s=SECONDS,
    in_state_s=SECONDS,
)
RECORDS = st.builds(
    PowerRecord,
    state=st.just(S.ONLINE),
    since=st.just(START),
    override=st.sampled_from([None, PowerOverride("on"), PowerOverride("off")]),
    on_intervals=st.sampled_from([(), STOPPED["on_intervals"]]),
)


@given(record=RECORDS, facts=FACTS)
def test_an_online_host_that_is_not_drained_has_a_reason(record: PowerRecord, facts: HostFacts) -> None:
    advanced = state_machine.advance(record, facts, RULES, "call")
    assert (advanced is not None and advanced.state is S.DRAINING) or keep_reasons(PowerCase(record, facts, RULES))


async def test_the_view_of_a_host_has_its_reasons(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, {"gpu-1": HOST, "gpu-2": HOST}, pools={"echo": PoolConfig(min=1)}) as made:

        def reasons(host: str) -> list[R]:
            view = next(view for view in made.edge.power.host_views(made.edge.world.hosts.views()) if view.id == host)
            return [kept.reason for kept in view.kept_on]

        await made.wait_for_state(S.ONLINE)
        await made.edge.world.submit(priority=Priority.LOW)
        await made.advance(5)
        assert reasons("gpu-1") == [R.LOW_JOBS_WAIT, R.POOL_MIN, R.MIN_ON]
        assert reasons("gpu-2") == []
        await made.edge.power.set_override("gpu-2", "on")
        await made.wait_for_state(S.ONLINE, "gpu-2")
        await made.run_all_jobs()
        await made.edge.power.set_override("gpu-2", "auto")
        await made.advance(10)
        assert R.COOL_DOWN in reasons("gpu-2")
