"""The table of power states, spelled out by hand: for each state the transitions, and cases without one."""

from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from edge.power import state_machine
from edge.power.conditions import DRAIN_SETTLE_S, UNREADABLE_HEARTBEAT, HeartbeatFacts, HostFacts, PowerCase
from edge.power.host_facts import Stopwatch
from edge.power.state_machine import TRANSITIONS
from schemas.host_config import CommandHostConfig, DailyBudget, PowerPrice, WolHostConfig
from schemas.power import (
    ForeignUse,
    OnInterval,
    PowerCall,
    PowerCallOutcome,
    PowerCallResult,
    PowerOverride,
    PowerRecord,
    PowerState,
    PowerVerb,
    ReportedPower,
)
from tests.edge.power.power_simulation import START

S = PowerState
RULES = CommandHostConfig(on=("on",), off=("off",), state=("state",), timezone="UTC", wake_delay=5.0)
BEATS = HeartbeatFacts("life-1")
BUSY = HeartbeatFacts("life-1", unfinished_jobs=1)
QUIT = HeartbeatFacts("life-1", draining=True)
QUIT_BUSY = HeartbeatFacts("life-1", draining=True, unfinished_jobs=1)
REBORN = HeartbeatFacts("life-2")
USED = HeartbeatFacts("life-1", foreign_uses=frozenset({"users"}))
QUIT_USED = HeartbeatFacts("life-1", draining=True, foreign_uses=frozenset({"programs"}))

ASKED = {"wake_requested": True, "wake_requested_s": 5.0, "has_queued_work": True}
OFF = {"reported_power": ReportedPower.OFF}
ON = {"reported_power": ReportedPower.ON}
PENDING = {"reported_power": ReportedPower.PENDING}
LONG = {"in_state_s": 600.0}
DEAF: dict[str, Any] = {"absence_counts": False}


def call(verb: PowerVerb, outcome: PowerCallOutcome | None = None, wait_s: float = 15.0) -> PowerCall:
    answer = None if outcome is None else PowerCallResult(outcome, "sold out")
    return PowerCall("earlier", verb, START, answer, wait_s if outcome not in {None, PowerCallOutcome.DONE} else 0.0)


SENT = {"call": call(PowerVerb.START)}
DONE = {"call": call(PowerVerb.START, PowerCallOutcome.DONE)}
NONE_LEFT = {"call": call(PowerVerb.START, PowerCallOutcome.NO_CAPACITY)}
FAILED = {"call": call(PowerVerb.START, PowerCallOutcome.FAILED), "failed_calls": 1}
SECOND = FAILED | {"failed_calls": 2}
THIRD = {"call": call(PowerVerb.START, PowerCallOutcome.FAILED), "failed_calls": 3}
STOP_SENT = {"call": call(PowerVerb.STOP)}
STOPPED = {"call": call(PowerVerb.STOP, PowerCallOutcome.DONE)}
STOP_FAILED = {"call": call(PowerVerb.STOP, PowerCallOutcome.FAILED), "failed_calls": 1}
STOP_THIRD = {"call": call(PowerVerb.STOP, PowerCallOutcome.FAILED), "failed_calls": 3}
HELD_ON = {"override": PowerOverride("on")}
HELD_OFF = {"override": PowerOverride("off")}
STOPPED_NOW, STOPPED_LATELY, STOPPED_LONG_AGO, STOPPED_IN_THE_FUTURE = (
    {"on_intervals": (OnInterval(START - timedelta(days=1), START - timedelta(seconds=ago), "a job waits for it"),)}
    for ago in (0, 3599, 3600, -1)
)
STOPPED_TWICE = {"on_intervals": STOPPED_LONG_AGO["on_intervals"] + STOPPED_LATELY["on_intervals"]}
RELEASED = {"heartbeat": BUSY, "has_queued_work": True, "is_released": True, **LONG}
LATE = {"call_s": 89.9}
LOST = {"call_s": 90.0}
RESTED = {"call_s": 15.0}
MUTE = {"can_report_state": False}
IDLE = {"heartbeat": BEATS, "idle_s": 900.0, "in_state_s": 600.0}
SETTLED = {"in_state_s": DRAIN_SETTLE_S}
KEPT: dict[str, Any] = {"in_maintenance": True}

START_IT, STOP_IT = PowerVerb.START, PowerVerb.STOP

# state, fields of its record, facts → the next state (None: nothing changes), and the call.
SPELLED = [
    (S.OFF, {}, {}, None, None),
    (S.OFF, {}, {"heartbeat": BEATS}, S.ONLINE, None),
    (S.OFF, {}, ASKED, S.WAKING, START_IT),
    (S.OFF, {}, {**ASKED, "wake_requested_s": 4.9}, None, None),
    (S.OFF, {}, {"has_queued_work": True}, None, None),
    (S.OFF, HELD_ON, {}, S.WAKING, START_IT),
    (S.OFF, HELD_OFF, ASKED, S.BLOCKED, None),
    (S.OFF, HELD_OFF, {}, None, None),
    (S.OFF, SENT, ASKED, None, None),
    (S.OFF, SENT, {**ASKED, **LOST}, S.WAKING, START_IT),
    (S.WAKING, SENT, {"heartbeat": BEATS}, S.ONLINE, None),
    (S.WAKING, SENT, ASKED, None, None),
    (S.WAKING, SENT, {**ASKED, **LATE}, None, None),
    (S.WAKING, SENT, {**ASKED, **LOST}, S.WAKING, START_IT),
    (S.WAKING, SENT | HELD_OFF, {**ASKED, **LOST}, None, None),
    (S.WAKING, NONE_LEFT, ASKED, S.BLOCKED, None),
    (S.WAKING, SECOND, ASKED, None, None),
    (S.WAKING, THIRD, ASKED, S.FAULT, None),
    (S.WAKING, FAILED | HELD_OFF, ASKED, S.BLOCKED, None),
    (S.WAKING, FAILED, OFF, S.OFF, None),
    (S.WAKING, FAILED, ASKED, None, None),
    (S.WAKING, FAILED, {**ASKED, **RESTED}, S.WAKING, START_IT),
    (S.WAKING, DONE, {**ASKED, **OFF}, None, None),
    (S.WAKING, {}, OFF, S.OFF, None),
    (S.WAKING, {}, {**MUTE, **DEAF}, None, None),
    (S.WAKING, DONE, {**ASKED, **LONG}, S.STOPPING, STOP_IT),
    (S.WAKING, DONE, {**ASKED, **LONG, "active_jobs": 1}, None, None),
    (S.WAKING, DONE, {**ASKED, **LONG, **DEAF}, None, None),
    (S.WAKING, DONE | {"failed_boots": 1}, {**ASKED, **LONG}, S.FAULT, None),
    (S.WAKING, DONE | {"failed_boots": 1}, {**ASKED, **LONG, "active_jobs": 1}, None, None),
    (S.BLOCKED, NONE_LEFT, {"heartbeat": BEATS}, S.ONLINE, None),
    (S.BLOCKED, SENT, ASKED, None, None),
    (S.BLOCKED, SENT, {**ASKED, **LOST}, S.BLOCKED, START_IT),
    (S.BLOCKED, DONE, ASKED, S.WAKING, None),
    (S.BLOCKED, NONE_LEFT, {**ASKED, **ON}, S.WAKING, None),
    (S.BLOCKED, NONE_LEFT, OFF, S.OFF, None),
    (S.BLOCKED, NONE_LEFT, MUTE, S.OFF, None),
    (S.BLOCKED, NONE_LEFT, {**MUTE, **DEAF}, None, None),
    (S.BLOCKED, NONE_LEFT, ASKED, None, None),
    (S.BLOCKED, NONE_LEFT, {**ASKED, **RESTED}, S.BLOCKED, START_IT),
    (S.BLOCKED, HELD_OFF, ASKED, None, None),
    (S.BLOCKED, NONE_LEFT, {**ASKED, **PENDING}, None, None),
    (S.BLOCKED, NONE_LEFT, PENDING, S.STOPPING, STOP_IT),
    (S.BLOCKED, NONE_LEFT | HELD_OFF, {**ASKED, **PENDING}, S.STOPPING, STOP_IT),
    (S.BLOCKED, NONE_LEFT, {**PENDING, "heartbeat": BEATS}, S.ONLINE, None),
    (S.BLOCKED, {}, ASKED, S.WAKING, START_IT),
    (S.ONLINE, {}, {"heartbeat": BEATS}, None, None),
    (S.ONLINE, {}, OFF, S.OFF, None),
    (S.ONLINE, {}, {"heartbeat": BEATS, **OFF}, None, None),
    (S.ONLINE, {}, MUTE, S.OFF, None),
    (S.ONLINE, {}, {**MUTE, **DEAF}, None, None),
    (S.ONLINE, {}, ON, S.WAKING, None),
    (S.ONLINE, {}, {**ON, **DEAF}, None, None),
    (S.ONLINE, HELD_OFF, {"heartbeat": BUSY, "has_queued_work": True}, S.DRAINING, None),
    (S.ONLINE, {}, IDLE, S.DRAINING, None),
    (S.ONLINE, {}, {**IDLE, "in_state_s": 599.0}, None, None),
    (S.ONLINE, {}, {**IDLE, "idle_s": 899.0}, None, None),
    (S.ONLINE, {}, {**IDLE, "has_queued_work": True}, None, None),
    (S.ONLINE, {}, {**IDLE, "active_jobs": 1}, None, None),
    (S.ONLINE, {}, {**IDLE, "heartbeat": BUSY}, None, None),
    (S.ONLINE, {}, {**IDLE, **DEAF}, None, None),
    (S.ONLINE, {}, {**IDLE, "heartbeat": USED}, None, None),
    (S.ONLINE, STOPPED_LATELY, IDLE, S.DRAINING, None),
    (S.ONLINE, STOPPED_NOW, {**IDLE, "has_pool_rule": True}, None, None),
    (S.ONLINE, STOPPED_LATELY, {**IDLE, "has_pool_rule": True}, None, None),
    (S.ONLINE, STOPPED_TWICE, {**IDLE, "has_pool_rule": True}, None, None),
    (S.ONLINE, STOPPED_LONG_AGO, {**IDLE, "has_pool_rule": True}, S.DRAINING, None),
    (S.ONLINE, STOPPED_IN_THE_FUTURE, {**IDLE, "has_pool_rule": True}, S.DRAINING, None),
    (S.ONLINE, {}, {**IDLE, "is_reserved": True}, None, None),
    (S.ONLINE, {}, RELEASED, S.DRAINING, None),
    (S.ONLINE, {}, {**RELEASED, "heartbeat": BEATS}, S.DRAINING, None),
    (S.ONLINE, {}, {**RELEASED, "is_released": False}, None, None),
    (S.ONLINE, {}, {**RELEASED, "in_state_s": 599.0}, None, None),
    (S.ONLINE, {}, {**RELEASED, "is_reserved": True}, None, None),
    (S.ONLINE, {}, {**RELEASED, "heartbeat": USED}, None, None),
    (S.ONLINE, {}, {**RELEASED, "in_maintenance": True}, None, None),
    (S.ONLINE, {}, {**RELEASED, **DEAF}, None, None),
    (S.ONLINE, HELD_ON, RELEASED, None, None),
    (S.ONLINE, STOPPED_LATELY, RELEASED, None, None),
    (S.ONLINE, STOPPED_LONG_AGO, RELEASED, S.DRAINING, None),
    (S.DRAINING, {}, {"heartbeat": QUIT_BUSY, "has_queued_work": True, "is_released": True}, None, None),
    (S.DRAINING, {}, {"heartbeat": QUIT_BUSY, "is_reserved": True}, S.ONLINE, None),
    (S.DRAINING, {}, {**RELEASED, "heartbeat": QUIT}, S.STOPPING, STOP_IT),
    (S.ONLINE, HELD_OFF, {"heartbeat": USED}, S.DRAINING, None),
    (S.ONLINE, HELD_ON, IDLE, None, None),
    (S.DRAINING, {}, OFF, S.OFF, None),
    (S.DRAINING, {}, {**OFF, **MUTE, **DEAF}, None, None),
    (S.DRAINING, {}, {"heartbeat": BEATS, **SETTLED}, None, None),
    (S.DRAINING, {}, {"heartbeat": QUIT, **SETTLED}, S.STOPPING, STOP_IT),
    (S.DRAINING, SENT, {"heartbeat": QUIT, **SETTLED}, None, None),
    (S.DRAINING, {}, {"heartbeat": QUIT, **SETTLED, **DEAF}, None, None),
    (S.DRAINING, {}, {"heartbeat": QUIT, "in_state_s": 5.0}, None, None),
    (S.DRAINING, {}, {"heartbeat": QUIT_BUSY, **SETTLED}, None, None),
    (S.DRAINING, {}, {"heartbeat": QUIT, "active_jobs": 1, **SETTLED}, None, None),
    (S.DRAINING, {}, {"heartbeat": QUIT, "has_queued_work": True, **SETTLED}, S.ONLINE, None),
    (S.DRAINING, HELD_OFF, {"heartbeat": QUIT, "has_queued_work": True, **SETTLED}, S.STOPPING, STOP_IT),
    (S.DRAINING, {}, {"heartbeat": QUIT_USED, **SETTLED}, S.ONLINE, None),
    (S.DRAINING, HELD_OFF, {"heartbeat": QUIT_USED, **SETTLED}, S.STOPPING, STOP_IT),
    (S.DRAINING, HELD_ON, {"heartbeat": QUIT, **SETTLED}, S.ONLINE, None),
    (S.DRAINING, {}, {**ON, "has_queued_work": True}, S.WAKING, None),
    (S.DRAINING, {}, ON, S.STOPPING, STOP_IT),
    (S.DRAINING, {}, MUTE, S.STOPPING, STOP_IT),
    (S.DRAINING, {}, {**ON, **DEAF}, None, None),
    (S.DRAINING, {}, {**ON, "active_jobs": 1}, None, None),
    (S.STOPPING, STOP_SENT, {**OFF, **ASKED}, None, None),
    (S.STOPPING, STOP_SENT, {"heartbeat": QUIT, **LOST}, S.STOPPING, STOP_IT),
    (S.STOPPING, STOP_SENT, {"heartbeat": BUSY, **LOST}, S.DRAINING, None),
    (S.STOPPING, STOPPED, OFF, S.OFF, None),
    (S.STOPPING, STOPPED, {**OFF, "heartbeat": QUIT}, None, None),
    (S.STOPPING, STOPPED, {"heartbeat": QUIT, "has_queued_work": True}, None, None),
    (S.STOPPING, STOPPED, MUTE, S.OFF, None),
    (S.STOPPING, STOPPED, {**MUTE, **DEAF}, None, None),
    (S.STOPPING, STOPPED, {**ON, **LONG}, S.FAULT, None),
    (S.STOPPING, STOP_FAILED, {"heartbeat": QUIT, "has_queued_work": True}, S.ONLINE, None),
    (S.STOPPING, STOP_FAILED, {"heartbeat": QUIT_USED}, S.ONLINE, None),
    (S.STOPPING, STOP_FAILED, {"heartbeat": BEATS}, S.DRAINING, None),
    (S.STOPPING, STOP_FAILED, {"heartbeat": QUIT}, None, None),
    (S.STOPPING, STOP_FAILED, {"heartbeat": QUIT, **RESTED}, S.STOPPING, STOP_IT),
    (S.STOPPING, STOP_FAILED, MUTE, None, None),
    (S.STOPPING, STOP_THIRD, {"heartbeat": QUIT}, S.FAULT, None),
    (S.STOPPING, STOP_THIRD, OFF, S.OFF, None),
    (S.FAULT, {}, {**ASKED, **OFF}, None, None),
    (S.FAULT, {}, {"heartbeat": BEATS}, None, None),
    (S.FAULT, {}, {"heartbeat": REBORN}, S.ONLINE, None),
    (S.FAULT, {}, {"heartbeat": UNREADABLE_HEARTBEAT}, None, None),
    (S.FAULT, {}, {"heartbeat": BEATS, "has_queued_work": True}, S.ONLINE, None),
    (S.FAULT, {"fault_acknowledged": True}, {"heartbeat": BEATS}, S.ONLINE, None),
    (S.FAULT, {"fault_acknowledged": True}, {**ASKED, **OFF}, S.WAKING, START_IT),
    (S.FAULT, {"fault_acknowledged": True}, OFF, S.OFF, None),
    (S.FAULT, {"fault_acknowledged": True}, ON, None, None),
    (S.OFF, HELD_ON, KEPT, S.WAKING, START_IT),
    (S.WAKING, DONE, {**LONG, **OFF, **KEPT}, S.OFF, None),
    (S.WAKING, DONE, {**LONG, **ON, **KEPT}, None, None),
    (S.ONLINE, {}, {**IDLE, **KEPT}, None, None),
    (S.ONLINE, {}, {**ON, **KEPT}, None, None),
    (S.ONLINE, {}, {**OFF, **KEPT}, S.OFF, None),
    (S.ONLINE, HELD_OFF, {"heartbeat": BUSY, **KEPT}, S.DRAINING, None),
    (S.DRAINING, {}, {"heartbeat": QUIT, **SETTLED, **KEPT}, S.ONLINE, None),
    (S.DRAINING, {}, {**ON, **KEPT}, None, None),
    (S.DRAINING, {}, {**MUTE, **KEPT}, S.OFF, None),
    (S.DRAINING, HELD_OFF, {"heartbeat": QUIT, **SETTLED, **KEPT}, S.STOPPING, STOP_IT),
    (S.STOPPING, STOP_SENT, {"heartbeat": QUIT, **LOST, **KEPT}, S.ONLINE, None),
    (S.STOPPING, STOP_FAILED, {"heartbeat": QUIT, **RESTED, **KEPT}, S.ONLINE, None),
    (S.STOPPING, STOP_FAILED, {**MUTE, **KEPT}, S.OFF, None),
    (S.STOPPING, STOP_FAILED, {**ON, **RESTED, **KEPT}, None, None),
    (S.STOPPING, STOPPED, {**ON, **LONG, **KEPT}, S.FAULT, None),
]


def record(state: PowerState, **fields: Any) -> PowerRecord:
    return PowerRecord(state=state, since=START, incarnation="life-1", **fields)


@pytest.mark.parametrize(("state", "has", "known", "to", "order"), SPELLED)
def test_the_table_is_this(
    state: PowerState, has: dict[str, Any], known: dict[str, Any], to: PowerState | None, order: PowerVerb | None
) -> None:
    before = record(state, **has)
    after = state_machine.advance(before, HostFacts(at=START, **known), RULES, "new")
    if to is None:
        assert after is None
        return
    assert after is not None
    assert after.state is to
    made = after.call.verb if after.call and after.call.id == "new" else None
    assert made is order
    assert (after.why != "") is (to is not state)


def test_every_row_of_the_table_is_taken_by_a_spelled_case() -> None:
    taken = set()
    for state, has, known, _, _ in SPELLED:
        case = PowerCase(record(state, **has), HostFacts(at=START, **known), RULES)
        taken |= {(state, n) for n, row in enumerate(TRANSITIONS[state]) if row.condition(case)}
    assert taken == {(state, n) for state, rows in TRANSITIONS.items() for n in range(len(rows))}


def test_what_people_read_tells_the_cause() -> None:
    def why(before: PowerRecord, **known: Any) -> str:
        after = state_machine.advance(before, HostFacts(at=START, **known), RULES, "new")
        assert after is not None
        return after.why

    assert why(record(S.OFF), **ASKED) == "a job waits for it"
    assert why(record(S.OFF), **{**ASKED, "has_queued_work": False}) == "a job waits for it"
    assert why(record(S.OFF), **ASKED, wake_reason="gpu needs two hosts") == "gpu needs two hosts"
    assert why(record(S.OFF, override=PowerOverride("on"))) == "the operator wants it on"
    assert why(record(S.WAKING, **NONE_LEFT)) == "no capacity: sold out"
    until = PowerOverride("off", START + timedelta(hours=7))
    assert why(record(S.OFF, override=until), **ASKED) == "the operator wants it off until 2026-11-21 19:00 UTC"


def test_a_hold_that_is_over_counts_no_more_and_leaves_the_record() -> None:
    before = record(S.OFF, override=PowerOverride("off", START))
    after = state_machine.advance(before, HostFacts(at=START, **ASKED), RULES, "new")
    assert after is not None
    assert (after.state, after.override) == (S.WAKING, None)


@pytest.mark.parametrize(("hour", "quiet"), [(22, False), (23, True), (3, True), (7, False)])
def test_quiet_hours_cross_midnight_and_an_override_beats_them(hour: int, quiet: bool) -> None:
    rules = replace(RULES, quiet_hours=("23:00-07:00",))
    known = HostFacts(at=START.replace(hour=hour), **ASKED)
    asked = state_machine.advance(record(S.OFF), known, rules, "new")
    wished = state_machine.advance(record(S.OFF, override=PowerOverride("on")), known, rules, "new")
    assert asked is not None
    assert wished is not None
    assert asked.state is (S.BLOCKED if quiet else S.WAKING)
    assert wished.state is S.WAKING


@pytest.mark.parametrize(("stays_for", "idle", "quiet"), [(("users",), None, None), ((), S.DRAINING, S.DRAINING)])
def test_people_keep_it_on_in_quiet_hours_too_unless_its_owner_ignores_them(
    stays_for: tuple[ForeignUse, ...], idle: PowerState | None, quiet: PowerState | None
) -> None:
    rules = replace(RULES, keep_on_for=stays_for)
    for known, ruled, to in ((IDLE, rules, idle), ({}, replace(rules, quiet_hours=("00:00-23:59",)), quiet)):
        facts = HostFacts(at=START, **{**known, "heartbeat": USED})
        after = state_machine.advance(record(S.ONLINE), facts, ruled, "new")
        assert (after and after.state) is to


def test_electricity_is_a_price_too() -> None:
    price = PowerPrice(per_hour=0.5, per_kwh=2.0, watts=250.0)
    assert price.hourly_cost == pytest.approx(1.0)
    rules = replace(RULES, budget=DailyBudget(money=2.0), price=price)
    lit = record(S.ONLINE, on_since=START)
    for spent, state in ((timedelta(minutes=119), None), (timedelta(hours=2), S.DRAINING)):
        after = state_machine.advance(lit, HostFacts(at=START + spent, heartbeat=BUSY), rules, "new")
        assert (after and after.state) == state
    with pytest.raises(ValueError, match="needs both"):
        PowerPrice(per_kwh=1.0)


def test_a_budget_bars_after_its_hours_or_its_money_until_the_next_day() -> None:
    hours = replace(RULES, budget=DailyBudget(hours=2))
    money = replace(RULES, budget=DailyBudget(money=4.0), price=PowerPrice(per_hour=2.0))
    lit = record(S.ONLINE, on_since=START, override=PowerOverride("on"))
    for rules in (hours, money):
        for spent, state in ((timedelta(minutes=119), None), (timedelta(hours=2), S.DRAINING)):
            after = state_machine.advance(lit, HostFacts(at=START + spent, heartbeat=BUSY), rules, "new")
            assert (after and after.state) == state
    tomorrow = START + timedelta(hours=13)  # one hour of the new day
    assert state_machine.advance(lit, HostFacts(at=tomorrow, heartbeat=BUSY), hours, "new") is None


def test_the_account_of_a_day_is_settled_when_the_light_goes_out() -> None:
    lit = record(S.STOPPING, on_since=START, **STOPPED)
    out = state_machine.advance(lit, HostFacts(at=START + timedelta(hours=1), **OFF), RULES, "new")
    assert out is not None
    assert (out.on_since, out.daily_on_time.day, out.daily_on_time.on_s) == (None, "2026-11-21", 3600.0)
    again = replace(out, state=S.STOPPING, on_since=START + timedelta(hours=2), **STOPPED)
    out = state_machine.advance(again, HostFacts(at=START + timedelta(hours=3), **OFF), RULES, "new")
    assert out is not None
    assert out.daily_on_time.on_s == 7200.0
    hour = timedelta(hours=1)
    assert out.on_intervals == (OnInterval(START, START + hour, ""), OnInterval(START + 2 * hour, START + 3 * hour, ""))


def test_the_account_of_a_day_begins_at_midnight() -> None:
    lit = record(S.STOPPING, on_since=START, **STOPPED)
    out = state_machine.advance(lit, HostFacts(at=START + timedelta(hours=13), **OFF), RULES, "new")
    assert out is not None
    assert (out.daily_on_time.day, out.daily_on_time.on_s) == ("2026-11-22", 3600.0)


@pytest.mark.parametrize(("has", "spent_s"), [(NONE_LEFT, 0.0), (FAILED, 0.0), (DONE, 60.0), ({}, 60.0)])
def test_a_start_that_was_not_done_gave_no_power(has: dict[str, Any], spent_s: float) -> None:
    waking = record(S.WAKING, on_since=START, **{**has, "override": PowerOverride("off")})
    known = {"heartbeat": None, **OFF}
    after = state_machine.advance(waking, HostFacts(at=START + timedelta(minutes=1), **known, **LONG), RULES, "new")
    assert after is not None
    if after.state is S.STOPPING:  # the machine was on during a boot that took too long
        after = state_machine.advance(
            replace(after, **STOPPED), HostFacts(at=START + timedelta(minutes=1), **OFF), RULES, "new"
        )
    assert after is not None
    assert (after.on_since, after.daily_on_time.on_s, len(after.on_intervals)) == (None, spent_s, int(spent_s > 0))


@pytest.mark.parametrize(("has", "known", "to"), [({}, KEPT, S.OFF), ({"failed_boots": 1}, {}, S.FAULT)])
def test_a_start_that_was_done_gave_power_until_the_host_is_off(
    has: dict[str, Any], known: dict[str, Any], to: PowerState
) -> None:
    waking = record(S.WAKING, on_since=START, **DONE, **has)
    facts = HostFacts(at=START + timedelta(minutes=1), **OFF, **LONG, **known)
    after = state_machine.advance(waking, facts, RULES, "new")
    assert after is not None
    assert (after.state, after.on_since, after.daily_on_time.on_s, len(after.on_intervals)) == (to, None, 60.0, 1)


def test_a_host_at_fault_may_be_on_until_its_driver_reports_off() -> None:
    waking = record(S.WAKING, on_since=START, failed_boots=1, **DONE)
    after = state_machine.advance(waking, HostFacts(at=START + timedelta(minutes=1), **ON, **LONG), RULES, "new")
    assert after is not None
    assert (after.state, after.on_since, after.on_intervals) == (S.FAULT, START, ())


@pytest.mark.parametrize("passed_s", [0.0, -60.0])
def test_no_interval_is_kept_that_does_not_end_after_its_start(passed_s: float) -> None:
    """A clock that was set back must not give an interval of negative length."""
    lit = record(S.ONLINE, on_since=START)
    after = state_machine.advance(lit, HostFacts(at=START + timedelta(seconds=passed_s), **OFF), RULES, "new")
    assert after is not None
    assert (after.state, after.on_since, after.daily_on_time.on_s, after.on_intervals) == (S.OFF, None, 0.0, ())


def test_what_it_got_power_for_is_kept_until_it_goes_out() -> None:
    woken = state_machine.advance(record(S.OFF), HostFacts(at=START, **ASKED), RULES, "new")
    found = state_machine.advance(record(S.OFF), HostFacts(at=START, heartbeat=BEATS), RULES, "new")
    met = state_machine.advance(record(S.OFF), HostFacts(at=START, heartbeat=BEATS, has_queued_work=True), RULES, "new")
    assert woken is not None
    assert found is not None
    assert met is not None
    assert (woken.on_since, woken.on_reason) == (START, "a job waits for it")
    assert (found.on_since, found.on_reason) == (START, "it came on by itself")
    assert (met.on_since, met.on_reason) == (START, "a job waits for it")
    online = state_machine.advance(woken, HostFacts(at=START + timedelta(minutes=1), heartbeat=BEATS), RULES, "new")
    assert online is not None
    assert (online.on_since, online.on_reason) == (START, "a job waits for it")


def test_a_wake_is_measured_from_the_call_to_the_heartbeat() -> None:
    after = state_machine.advance(
        record(S.WAKING, **DONE), HostFacts(at=START + timedelta(seconds=41), heartbeat=BEATS), RULES, "new"
    )
    silent = state_machine.advance(
        record(S.WAKING), HostFacts(at=START + timedelta(seconds=41), heartbeat=BEATS), RULES, "new"
    )
    assert after is not None
    assert silent is not None
    assert (after.wake_durations_s, silent.wake_durations_s) == ((41.0,), ())


def test_a_start_that_found_capacity_at_last_is_measured_too() -> None:
    waking = state_machine.advance(record(S.BLOCKED, **DONE), HostFacts(at=START, **ASKED), RULES, "new")
    assert waking is not None
    assert (waking.state, waking.call) == (S.WAKING, DONE["call"])
    facts = HostFacts(at=START + timedelta(seconds=41), heartbeat=BEATS)
    online = state_machine.advance(waking, facts, RULES, "newer")
    assert online is not None
    assert online.wake_durations_s == (41.0,)


@pytest.mark.parametrize(("state", "known"), [(S.ONLINE, ON), (S.DRAINING, {**ON, "has_queued_work": True})])
def test_a_host_whose_heartbeats_come_back_was_not_woken(state: PowerState, known: dict[str, Any]) -> None:
    """Its last start call is of an earlier time, and the seconds since then are not those of a boot."""
    lost = state_machine.advance(record(state, **DONE), HostFacts(at=START, **known), RULES, "new")
    assert lost is not None
    assert (lost.state, lost.call) == (S.WAKING, None)
    facts = HostFacts(at=START + timedelta(seconds=41), heartbeat=BEATS)
    back = state_machine.advance(lost, facts, RULES, "newer")
    assert back is not None
    assert (back.state, back.wake_durations_s) == (S.ONLINE, ())


def test_an_answer_counts_once_and_only_for_its_own_call() -> None:
    waiting = record(S.WAKING, **SENT)
    answer = PowerCallResult(PowerCallOutcome.FAILED, "no route")
    heard = state_machine.with_result(waiting, "earlier", answer, jitter=0.5)
    assert heard is not None
    assert heard.call is not None
    assert (heard.call.result, heard.call.retry_after_s, heard.failed_calls) == (answer, 15.0, 1)
    assert state_machine.with_result(waiting, "another", answer, 0.5) is None
    assert state_machine.with_result(heard, "earlier", answer, 0.5) is None


def test_the_back_off_doubles_to_ten_minutes_with_jitter_around_it() -> None:
    assert [state_machine.backoff_s(n, 0.5) for n in range(8)] == [15, 30, 60, 120, 240, 480, 600, 600]
    assert (state_machine.backoff_s(0, 0.0), state_machine.backoff_s(99, 0.999)) == (7.5, pytest.approx(899.4))


def test_a_stop_is_withheld_when_something_came_in_between() -> None:
    stopping = record(S.STOPPING, **STOP_SENT)
    for known in (
        {"heartbeat": BUSY},
        {"heartbeat": BEATS},
        {"heartbeat": QUIT, "has_queued_work": True},
        {"heartbeat": QUIT_USED},
        {"active_jobs": 1},
        {"heartbeat": QUIT, **KEPT},
    ):
        assert state_machine.stop_veto(stopping, HostFacts(at=START, **known), RULES)
    assert state_machine.stop_veto(stopping, HostFacts(at=START, heartbeat=QUIT), RULES) is None
    assert state_machine.stop_veto(stopping, HostFacts(at=START), RULES) is None


def test_a_host_without_an_off_switch_is_told_to_power_itself_off() -> None:
    drained = HostFacts(at=START, heartbeat=QUIT, in_state_s=DRAIN_SETTLE_S)
    by_runner = state_machine.advance(record(S.DRAINING), drained, WolHostConfig(mac="a4:bb:6d:00:11:22"), "new")
    by_switch = state_machine.advance(record(S.DRAINING), drained, RULES, "new")
    assert by_runner is not None
    assert by_switch is not None
    assert (by_runner.runner_powers_off, by_switch.runner_powers_off) == (True, False)
    off = state_machine.advance(replace(by_runner, **STOPPED), HostFacts(at=START, **OFF), RULES, "next")
    assert off is not None
    assert (off.state, off.runner_powers_off) == (S.OFF, False)


def test_a_stopwatch_begins_anew_with_every_value() -> None:
    now = 100.0
    watch = Stopwatch(lambda: now)
    seconds = [watch.seconds("call", "a")]
    for now, value in ((103.0, "a"), (104.0, "b"), (109.0, "b"), (110.0, None), (111.0, None)):  # noqa: B007
        seconds.append(watch.seconds("call", value))
    assert seconds == [0.0, 3.0, 0.0, 5.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("state", "has", "took_s", "measured"),
    [
        (S.WAKING, DONE, -5.0, ()),
        (S.WAKING, DONE, 0.0, ()),
        (S.WAKING, DONE, 0.5, (0.5,)),
        (S.WAKING, DONE, 3600.0, (3600.0,)),
        (S.WAKING, DONE, 3600.5, ()),
        (S.WAKING, STOPPED, 41.0, ()),
        (S.BLOCKED, DONE, 41.0, ()),
    ],
)
def test_only_a_wake_by_a_call_and_of_a_possible_length_is_measured(
    state: PowerState, has: dict[str, Any], took_s: float, measured: tuple[float, ...]
) -> None:
    facts = HostFacts(at=START + timedelta(seconds=took_s), heartbeat=BEATS)
    after = state_machine.advance(record(state, **has), facts, RULES, "new")
    assert after is not None
    assert after.wake_durations_s == measured


def test_a_call_in_flight_is_kept_when_the_host_goes_off() -> None:
    """Else a second call could be made while the first one still takes effect."""
    known = HostFacts(at=START, **OFF)
    for has, kept in ((SENT, SENT["call"]), (DONE, None), (FAILED, None)):
        after = state_machine.advance(record(S.ONLINE, **has), known, RULES, "new")
        assert after is not None
        assert (after.state, after.call) == (S.OFF, kept)


def test_a_host_that_was_online_was_on_whatever_became_of_a_start_call() -> None:
    lit = record(S.ONLINE, on_since=START, **SENT)
    after = state_machine.advance(lit, HostFacts(at=START + timedelta(hours=1), **OFF), RULES, "new")
    assert after is not None
    assert (after.daily_on_time.on_s, len(after.on_intervals)) == (3600.0, 1)


def test_failures_are_counted_anew_once_the_host_is_online_or_off_and_for_each_stop() -> None:
    failed = {"failed_calls": 2, "failed_boots": 1}
    online = state_machine.advance(record(S.WAKING, **failed), HostFacts(at=START, heartbeat=BEATS), RULES, "new")
    drained = HostFacts(at=START, heartbeat=QUIT, in_state_s=DRAIN_SETTLE_S)
    stopping = state_machine.advance(record(S.DRAINING, **failed), drained, RULES, "new")
    cycled = state_machine.advance(
        record(S.WAKING, failed_calls=2, **DONE), HostFacts(at=START, **ASKED, **LONG), RULES, "new"
    )
    off = state_machine.advance(record(S.ONLINE, **failed), HostFacts(at=START, **OFF), RULES, "new")
    for after, state, boots in (
        (online, S.ONLINE, 0),
        (stopping, S.STOPPING, 1),
        (cycled, S.STOPPING, 1),
        (off, S.OFF, 1),
    ):
        assert after is not None
        assert (after.state, after.failed_calls, after.failed_boots) == (state, 0, boots)


def test_a_host_that_was_at_fault_has_its_power_cycle_again() -> None:
    overdue = HostFacts(at=START, **ASKED, **LONG)
    fault = state_machine.advance(record(S.WAKING, failed_boots=1, failed_calls=2, **DONE), overdue, RULES, "new")
    assert fault is not None
    assert (fault.state, fault.call, fault.failed_calls, fault.failed_boots) == (S.FAULT, None, 0, 0)
    woken = state_machine.advance(replace(fault, fault_acknowledged=True), overdue, RULES, "next")
    assert woken is not None
    booting = state_machine.advance(replace(woken, **DONE), overdue, RULES, "last")
    assert booting is not None
    assert (booting.state, booting.why) == (S.STOPPING, "no heartbeat in time: one power cycle")


def test_an_override_acknowledges_a_fault_and_nothing_else() -> None:
    for state in PowerState:
        for override in (PowerOverride("on"), None):
            after = state_machine.with_override(record(state), override)
            assert (after.override, after.fault_acknowledged) == (override, state is S.FAULT)


def test_a_blocked_host_that_comes_on_without_a_call_does_not_fall_back() -> None:
    facts = HostFacts(at=START, **ASKED, **ON)
    came_on = state_machine.advance(record(S.BLOCKED, **NONE_LEFT), facts, RULES, "new")
    assert came_on is not None
    assert (came_on.state, came_on.call) == (S.WAKING, None)
    assert state_machine.advance(came_on, facts, RULES, "newer") is None


def test_a_record_without_a_call_takes_no_result() -> None:
    answer = PowerCallResult(PowerCallOutcome.DONE, "")
    assert state_machine.with_result(record(S.OFF), "earlier", answer, jitter=0.5) is None


def test_a_host_without_facts_has_waited_for_nothing_and_has_nothing_to_do() -> None:
    facts = HostFacts(at=START)
    assert (facts.wake_requested_s, facts.idle_s, facts.in_state_s, facts.call_s, facts.active_jobs) == (0, 0, 0, 0, 0)
    assert not facts.wake_requested
    assert not facts.has_queued_work
    assert not facts.has_waking_work
    assert not facts.in_maintenance
