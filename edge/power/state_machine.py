"""Walks the table: what becomes of a host's record by the facts, by the answer to a call, by the owner's wish. Pure.

Writing the record is the caller's compare-and-set, and only then is the call made: of several edges one wins.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from msgspec.structs import replace

from edge.power import conditions
from edge.power.budget import close_daily_on_time, close_on_interval
from edge.power.conditions import HostFacts, PowerCase
from edge.power.transitions import RUNNER_IN_USE, TRANSITIONS, PowerTransition
from schemas.host_config import HostConfig
from schemas.power import (
    HISTORY_LIMIT,
    WAKE_DURATION_LIMIT,
    PowerCall,
    PowerCallOutcome,
    PowerCallResult,
    PowerChange,
    PowerOverride,
    PowerRecord,
    PowerState,
    ReportedPower,
)

BACKOFF_MIN_S = 15.0
BACKOFF_MAX_S = 600.0
WAKE_DURATION_LIMIT_S = 3600.0  # a longer one was no boot: the clock jumped, or nobody looked


def initial_record(at: datetime) -> PowerRecord:
    """The first record of a declared host."""
    return PowerRecord(state=PowerState.OFF, since=at, why="it was not seen yet")


def advance(record: PowerRecord, facts: HostFacts, rules: HostConfig, call_id: str) -> PowerRecord | None:
    """The next record, None when nothing changes. If its call has the id `call_id`, the writer makes that call."""
    case = PowerCase(record, facts, rules)
    row = next((row for row in TRANSITIONS[record.state] if row.condition(case)), None)
    if row is None or row.target is None or (row.verb and conditions.is_call_in_flight(case)):
        return None
    changes = _new_call(case, row, call_id)
    if row.target is not record.state:
        changes = _state_change(case, row) | ON_ENTER[row.target](case) | changes
    return replace(record, **changes)


def _new_call(case: PowerCase, row: PowerTransition, call_id: str) -> dict[str, Any]:
    return {"call": PowerCall(call_id, row.verb, case.facts.at)} if row.verb else {}


def _state_change(case: PowerCase, row: PowerTransition) -> dict[str, Any]:
    record, at = case.record, case.facts.at
    bar = conditions.power_prohibition(record, at, case.rules) or ""
    why = row.why.format(bar=bar, cause=conditions.wake_cause(case), said=conditions.call_message(case))
    change = PowerChange(at, row.target or record.state, why)
    return {
        "state": change.state,
        "since": at,
        "why": why,
        "fault_acknowledged": False,
        "override": conditions.active_override(record, at),
        "history": (*record.history, change)[-HISTORY_LIMIT:],
    }


def _call_in_flight(case: PowerCase) -> PowerCall | None:
    """The call, while it may still be on its way: nobody may forget that."""
    return case.record.call if conditions.is_call_in_flight(case) else None


def _power_off_changes(case: PowerCase) -> dict[str, Any]:
    """The account of the time with power; a start that was not done gave none."""
    never = (
        case.record.state is PowerState.WAKING and conditions.is_start_call(case) and not conditions.is_call_done(case)
    )
    record, at = replace(case.record, on_since=None) if never else case.record, case.facts.at
    return {
        "daily_on_time": close_daily_on_time(record, at, case.rules),
        "on_intervals": close_on_interval(record, at),
        "on_since": None,
    }


def _enter_off(case: PowerCase) -> dict[str, Any]:
    return {"call": _call_in_flight(case), "failed_calls": 0, "runner_powers_off": False, **_power_off_changes(case)}


def _power_on_changes(case: PowerCase) -> dict[str, Any]:
    """It has power from now on, if it had none."""
    record, at = case.record, case.facts.at
    return {} if record.on_since else {"on_since": at, "on_reason": conditions.wake_cause(case)}


def _enter_waking(case: PowerCase) -> dict[str, Any]:
    silent = case.record.state in {PowerState.ONLINE, PowerState.DRAINING}
    forgotten = {"call": _call_in_flight(case)} if silent else {}
    return _power_on_changes(case) | forgotten


def _enter_online(case: PowerCase) -> dict[str, Any]:
    record, heart = case.record, case.facts.heartbeat
    return _power_on_changes(case) | {
        "failed_calls": 0,
        "failed_boots": 0,
        "incarnation": heart.incarnation if heart else None,
        "wake_durations_s": (*record.wake_durations_s, *_measured_wake(case))[-WAKE_DURATION_LIMIT:],
    }


def _measured_wake(case: PowerCase) -> tuple[float, ...]:
    """Seconds from the start call to this heartbeat, where there was one."""
    record = case.record
    if record.call is None or not conditions.is_start_call(case) or record.state is not PowerState.WAKING:
        return ()
    took = (case.facts.at - record.call.at).total_seconds()
    return (took,) if 0 < took <= WAKE_DURATION_LIMIT_S else ()


def _enter_blocked(case: PowerCase) -> dict[str, Any]:
    return _power_off_changes(case)


def _enter_draining(_: PowerCase) -> dict[str, Any]:
    return {}


def _enter_stopping(case: PowerCase) -> dict[str, Any]:
    cycle = case.record.state is PowerState.WAKING
    return {
        "failed_calls": 0,
        "failed_boots": case.record.failed_boots + cycle,
        "runner_powers_off": case.rules.runner_powers_off,
    }


def _enter_fault(case: PowerCase) -> dict[str, Any]:
    out = _power_off_changes(case) if case.facts.reported_power is ReportedPower.OFF else {}
    return {"call": _call_in_flight(case), "failed_calls": 0, "failed_boots": 0, **out}


ON_ENTER: Mapping[PowerState, Callable[[PowerCase], dict[str, Any]]] = {
    PowerState.OFF: _enter_off,
    PowerState.WAKING: _enter_waking,
    PowerState.ONLINE: _enter_online,
    PowerState.DRAINING: _enter_draining,
    PowerState.STOPPING: _enter_stopping,
    PowerState.BLOCKED: _enter_blocked,
    PowerState.FAULT: _enter_fault,
}


def stop_veto(record: PowerRecord, facts: HostFacts, rules: HostConfig) -> str | None:
    """Why a stop that was decided must not be made after all, judged by facts gathered just before; None: make it.

    Between the look and the write a runner may have come up, or work may have come in.
    """
    case = PowerCase(record, facts, rules)
    if RUNNER_IN_USE(case):
        return "its runner answers and is in use"
    return None if conditions.is_empty(case) else "a job is recorded as running there"


def with_result(record: PowerRecord, call_id: str, answer: PowerCallResult, jitter: float) -> PowerRecord | None:
    """The record with the answer to its call; None when that call is not the one it waits for. `jitter` in [0, 1)."""
    call = record.call
    if call is None or call.id != call_id or call.result is not None:
        return None
    if answer.outcome is PowerCallOutcome.DONE:
        return replace(record, call=replace(call, result=answer))
    wait_s = backoff_s(record.failed_calls, jitter)
    return replace(
        record, call=replace(call, result=answer, retry_after_s=wait_s), failed_calls=record.failed_calls + 1
    )


def backoff_s(attempts: int, jitter: float) -> float:
    """Seconds to rest after `attempts` earlier ones: doubling from 15 s to 10 min, half to one and a half of that."""
    return min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2.0 ** min(attempts, 20)) * (0.5 + jitter)


def with_override(record: PowerRecord, hold: PowerOverride | None) -> PowerRecord:
    """The record with the owner's wish (None: none); it also pardons a fault, because the owner has looked."""
    return replace(record, override=hold, fault_acknowledged=record.state is PowerState.FAULT)
