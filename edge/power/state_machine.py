"""The table of power states, and its application to one host's power record. Pure.

For each state the table has the possible transitions. The first whose condition holds is taken. A host is online only
by its runner's heartbeat. It is off only by its power driver's report, or, if the driver cannot report, when it is
gone (no heartbeat while this edge is connected).

The caller writes the returned record by compare-and-set, and makes the call of the record only if the write succeeds.
Of several edges, one wins.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from msgspec.structs import replace

from edge.power import conditions as c
from edge.power.conditions import HostFacts, PowerCase, all_of, unless
from schemas.backoff import Backoff
from schemas.host_config import HostConfig
from schemas.power import (
    HISTORY_LIMIT,
    ON_INTERVAL_LIMIT,
    WAKE_DURATION_LIMIT,
    DailyOnTime,
    OnInterval,
    PowerCall,
    PowerCallOutcome,
    PowerCallResult,
    PowerChange,
    PowerOverride,
    PowerRecord,
    PowerState,
    PowerVerb,
    ReportedPower,
)
from schemas.power import PowerState as S


class PowerTransition(NamedTuple):
    """If `condition` holds, the host enters `target`; with a `verb`, the driver is called.

    `target` None: change nothing and ignore the rows below. `why`: shown in the history and to users.
    """

    condition: c.Condition
    target: S | None
    why: str = ""
    verb: PowerVerb | None = None


START, STOP = PowerVerb.START, PowerVerb.STOP
WAKE_ALLOWED = all_of(c.is_wake_wanted, unless(c.is_prohibited))
WORK_ALLOWED = all_of(c.is_needed, unless(c.is_prohibited))
RUNNER_IN_USE = all_of(c.is_heartbeating, c.any_of(WORK_ALLOWED, unless(c.reports_drained)))
KEPT_ON = c.any_of(RUNNER_IN_USE, c.is_left_alone)  # the host must not be stopped
CALL_DONE, CALL_NO_CAPACITY, CALL_FAILED = (
    c.is_call_done,
    c.call_ended_with(PowerCallOutcome.NO_CAPACITY),
    c.call_ended_with(PowerCallOutcome.FAILED),
)
RUNNER_ANSWERS = "its runner answers"
RUNNER_SILENT = "its heartbeats stopped"
IS_OFF = "it is off"
OFF_BY_ITSELF = "it powered off by itself"
NEEDED_AGAIN = "it is needed again"
IN_MAINTENANCE = "it is in maintenance"
NOT_WANTED = "no job waits for it any more"
ACKNOWLEDGED = "the fault was acknowledged"
CAUSE = "{cause}"
PROHIBITION = "{prohibition}"

TRANSITIONS: Mapping[S, Sequence[PowerTransition]] = {
    S.OFF: (
        PowerTransition(c.is_heartbeating, S.ONLINE, RUNNER_ANSWERS),
        PowerTransition(all_of(c.is_wake_wanted, c.is_prohibited), S.BLOCKED, PROHIBITION),
        PowerTransition(c.is_wake_wanted, S.WAKING, CAUSE, START),
    ),
    S.WAKING: (
        PowerTransition(c.is_heartbeating, S.ONLINE, RUNNER_ANSWERS),
        PowerTransition(all_of(c.is_call_abandoned, WAKE_ALLOWED), S.WAKING, verb=START),
        PowerTransition(c.is_call_in_flight, None),
        PowerTransition(CALL_NO_CAPACITY, S.BLOCKED, "no capacity: {message}"),
        PowerTransition(all_of(CALL_FAILED, c.is_call_limit_reached), S.FAULT, "cannot be powered on: {message}"),
        PowerTransition(all_of(CALL_FAILED, c.is_prohibited), S.BLOCKED, PROHIBITION),
        PowerTransition(all_of(CALL_FAILED, unless(c.is_wake_wanted), c.is_off), S.OFF, NOT_WANTED),
        PowerTransition(all_of(CALL_FAILED, c.is_backoff_over, WAKE_ALLOWED), S.WAKING, verb=START),
        PowerTransition(all_of(c.has_no_call, c.is_off), S.OFF, IS_OFF),
        PowerTransition(all_of(c.is_boot_overdue, c.is_in_maintenance, c.is_off), S.OFF, IS_OFF),
        PowerTransition(all_of(c.is_boot_overdue, c.is_in_maintenance), None),
        PowerTransition(
            all_of(c.is_boot_overdue, c.was_power_cycled), S.FAULT, "no heartbeat, not even after a power cycle"
        ),
        PowerTransition(c.is_boot_overdue, S.STOPPING, "no heartbeat in time: one power cycle", STOP),
    ),
    S.BLOCKED: (
        PowerTransition(c.is_heartbeating, S.ONLINE, RUNNER_ANSWERS),
        PowerTransition(all_of(c.is_call_abandoned, WAKE_ALLOWED), S.BLOCKED, verb=START),
        PowerTransition(c.is_call_in_flight, None),
        PowerTransition(CALL_DONE, S.WAKING, "there is capacity again"),
        PowerTransition(c.is_reported_on, S.WAKING, "its power driver reports that it is on"),
        PowerTransition(all_of(unless(c.is_wake_wanted), c.is_off), S.OFF, NOT_WANTED),
        PowerTransition(all_of(unless(WAKE_ALLOWED), c.is_reported_pending), S.STOPPING, NOT_WANTED, STOP),
        PowerTransition(all_of(WAKE_ALLOWED, c.has_no_call), S.WAKING, CAUSE, START),
        PowerTransition(all_of(WAKE_ALLOWED, c.is_backoff_over), S.BLOCKED, verb=START),
    ),
    S.ONLINE: (
        PowerTransition(c.is_off, S.OFF, OFF_BY_ITSELF),
        PowerTransition(c.is_left_alone, None),
        PowerTransition(c.is_lost, S.WAKING, RUNNER_SILENT),
        PowerTransition(all_of(c.is_heartbeating, c.is_prohibited), S.DRAINING, PROHIBITION),
        PowerTransition(all_of(c.is_heartbeating, c.is_idle), S.DRAINING, "nothing to do"),
        PowerTransition(all_of(c.is_heartbeating, c.is_superfluous), S.DRAINING, "its pools need fewer hosts"),
    ),
    S.DRAINING: (
        PowerTransition(c.is_reported_off, S.OFF, OFF_BY_ITSELF),
        PowerTransition(all_of(c.is_heartbeating, c.is_left_alone), S.ONLINE, IN_MAINTENANCE),
        PowerTransition(all_of(c.is_off, c.is_left_alone), S.OFF, OFF_BY_ITSELF),
        PowerTransition(c.is_left_alone, None),
        PowerTransition(all_of(c.is_heartbeating, WORK_ALLOWED), S.ONLINE, NEEDED_AGAIN),
        PowerTransition(all_of(c.is_lost, WORK_ALLOWED), S.WAKING, RUNNER_SILENT),
        PowerTransition(all_of(c.is_lost, c.is_empty), S.STOPPING, "its heartbeats stopped while it drained", STOP),
        PowerTransition(c.is_drained, S.STOPPING, "it is drained", STOP),
    ),
    S.STOPPING: (
        PowerTransition(all_of(c.is_call_abandoned, unless(KEPT_ON)), S.STOPPING, verb=STOP),
        PowerTransition(c.is_call_in_flight, None),
        PowerTransition(c.is_reported_off, S.OFF, IS_OFF),
        PowerTransition(all_of(unless(CALL_DONE), c.is_heartbeating, c.is_left_alone), S.ONLINE, IN_MAINTENANCE),
        PowerTransition(all_of(unless(CALL_DONE), c.is_off, c.is_left_alone), S.OFF, IS_OFF),
        PowerTransition(all_of(unless(CALL_DONE), c.is_left_alone), None),
        PowerTransition(all_of(unless(CALL_DONE), c.is_heartbeating, WORK_ALLOWED), S.ONLINE, NEEDED_AGAIN),
        PowerTransition(
            all_of(unless(CALL_DONE), c.is_heartbeating, unless(c.reports_drained)),
            S.DRAINING,
            "its runner is not drained",
        ),
        PowerTransition(
            all_of(unless(CALL_DONE), c.is_call_limit_reached), S.FAULT, "cannot be powered off: {message}"
        ),
        PowerTransition(all_of(unless(CALL_DONE), c.is_backoff_over), S.STOPPING, verb=STOP),
        PowerTransition(unless(CALL_DONE), None),
        PowerTransition(c.is_off, S.OFF, IS_OFF),
        PowerTransition(c.is_stop_overdue, S.FAULT, "it did not power off in time"),
    ),
    S.FAULT: (
        PowerTransition(all_of(c.is_heartbeating, c.is_new_incarnation), S.ONLINE, RUNNER_ANSWERS),
        PowerTransition(all_of(c.is_heartbeating, WORK_ALLOWED), S.ONLINE, "jobs wait for it, and its runner answers"),
        PowerTransition(all_of(c.is_heartbeating, c.is_fault_acknowledged), S.ONLINE, ACKNOWLEDGED),
        PowerTransition(all_of(c.is_fault_acknowledged, WAKE_ALLOWED), S.WAKING, CAUSE, START),
        PowerTransition(all_of(c.is_fault_acknowledged, c.is_off), S.OFF, ACKNOWLEDGED),
    ),
}


CALL_BACKOFF = Backoff(15.0, 600.0)
WAKE_DURATION_LIMIT_S = 3600.0  # a longer measurement is wrong: the clock jumped, or no edge was running


def initial_record(at: datetime) -> PowerRecord:
    """Return the first record of a declared host."""
    return PowerRecord(state=PowerState.OFF, since=at, why="not seen yet")


def advance(record: PowerRecord, facts: HostFacts, rules: HostConfig, call_id: str) -> PowerRecord | None:
    """Return the next record, or None if nothing changes.

    If the call of the returned record has the id `call_id`, the edge that writes the record makes this call.
    """
    case = PowerCase(record, facts, rules)
    row = next((row for row in TRANSITIONS[record.state] if row.condition(case)), None)
    if row is None or row.target is None or (row.verb and c.is_call_in_flight(case)):
        return None
    if row.target is not record.state:
        record = ON_ENTER[row.target](case, _enter_state(case, row))
    return replace(record, call=PowerCall(call_id, row.verb, facts.at)) if row.verb else record


def _enter_state(case: PowerCase, row: PowerTransition) -> PowerRecord:
    """Return the record in the target state, with the change in its history."""
    record, at = case.record, case.facts.at
    prohibition = c.power_prohibition(record, at, case.rules) or ""
    why = row.why.format(prohibition=prohibition, cause=c.wake_cause(case), message=c.call_message(case))
    change = PowerChange(at, row.target or record.state, why)
    return replace(
        record,
        state=change.state,
        since=at,
        why=why,
        fault_acknowledged=False,
        override=c.active_override(record, at),
        history=(*record.history, change)[-HISTORY_LIMIT:],
    )


def _call_in_flight(case: PowerCase) -> PowerCall | None:
    """Return the call while it may still take effect: the record must not lose such a call."""
    return case.record.call if c.is_call_in_flight(case) else None


def _close_on_time(case: PowerCase, record: PowerRecord) -> PowerRecord:
    """End the current on-interval. A start call that was not done did not power the host on."""
    was_never_on = case.record.state is PowerState.WAKING and c.is_start_call(case) and not c.is_call_done(case)
    before, at = replace(case.record, on_since=None) if was_never_on else case.record, case.facts.at
    return replace(
        record,
        daily_on_time=_close_daily_on_time(before, at, case.rules),
        on_intervals=_close_on_interval(before, at),
        on_since=None,
    )


def _open_on_time(case: PowerCase, record: PowerRecord) -> PowerRecord:
    """Start an on-interval unless one is open."""
    if case.record.on_since:
        return record
    return replace(record, on_since=case.facts.at, on_reason=c.wake_cause(case))


def _enter_off(case: PowerCase, record: PowerRecord) -> PowerRecord:
    record = replace(record, call=_call_in_flight(case), failed_calls=0, runner_powers_off=False)
    return _close_on_time(case, record)


def _enter_waking(case: PowerCase, record: PowerRecord) -> PowerRecord:
    was_up = case.record.state in {PowerState.ONLINE, PowerState.DRAINING}
    came_on_anyway = case.record.state is PowerState.BLOCKED and not c.is_call_done(case)
    # A call that ended without capacity would lead back to BLOCKED at once.
    return _open_on_time(case, replace(record, call=_call_in_flight(case)) if was_up or came_on_anyway else record)


def _enter_online(case: PowerCase, record: PowerRecord) -> PowerRecord:
    heartbeat = case.facts.heartbeat
    record = replace(
        record,
        failed_calls=0,
        failed_boots=0,
        incarnation=heartbeat.incarnation if heartbeat else None,
        wake_durations_s=(*record.wake_durations_s, *_measured_wake(case))[-WAKE_DURATION_LIMIT:],
    )
    return _open_on_time(case, record)


def _measured_wake(case: PowerCase) -> tuple[float, ...]:
    """Return the seconds from the start call to this heartbeat, if there was a start call."""
    record = case.record
    if record.call is None or not c.is_start_call(case) or record.state is not PowerState.WAKING:
        return ()
    took = (case.facts.at - record.call.at).total_seconds()
    return (took,) if 0 < took <= WAKE_DURATION_LIMIT_S else ()


def _enter_draining(_: PowerCase, record: PowerRecord) -> PowerRecord:
    return record


def _enter_stopping(case: PowerCase, record: PowerRecord) -> PowerRecord:
    is_power_cycle = case.record.state is PowerState.WAKING
    return replace(
        record,
        failed_calls=0,
        failed_boots=record.failed_boots + is_power_cycle,
        runner_powers_off=case.rules.runner_powers_off,
    )


def _enter_fault(case: PowerCase, record: PowerRecord) -> PowerRecord:
    record = replace(record, call=_call_in_flight(case), failed_calls=0, failed_boots=0)
    return _close_on_time(case, record) if case.facts.reported_power is ReportedPower.OFF else record


ON_ENTER: Mapping[PowerState, Callable[[PowerCase, PowerRecord], PowerRecord]] = {
    PowerState.OFF: _enter_off,
    PowerState.WAKING: _enter_waking,
    PowerState.ONLINE: _enter_online,
    PowerState.DRAINING: _enter_draining,
    PowerState.STOPPING: _enter_stopping,
    PowerState.BLOCKED: _close_on_time,
    PowerState.FAULT: _enter_fault,
}


def stop_veto(record: PowerRecord, facts: HostFacts, rules: HostConfig) -> str | None:
    """Return why a decided stop must not be made, or None. `facts` must be read just before the stop.

    Between the decision and the stop a runner may have started, or a job may have arrived.
    """
    case = PowerCase(record, facts, rules)
    if c.is_left_alone(case):
        return "it is in maintenance"
    if RUNNER_IN_USE(case):
        return "its runner answers and is in use"
    return None if c.is_empty(case) else "a job is recorded as running there"


def with_result(record: PowerRecord, call_id: str, result: PowerCallResult, jitter: float) -> PowerRecord | None:
    """Return the record with the result of its call; None if the record waits for another call. `jitter` in [0, 1)."""
    call = record.call
    if call is None or call.id != call_id or call.result is not None:
        return None
    if result.outcome is PowerCallOutcome.DONE:
        return replace(record, call=replace(call, result=result))
    wait_s = backoff_s(record.failed_calls, jitter)
    return replace(
        record, call=replace(call, result=result, retry_after_s=wait_s), failed_calls=record.failed_calls + 1
    )


def backoff_s(failed_calls: int, jitter: float) -> float:
    """Return the backoff after `failed_calls` failures: doubles from 15 s to 10 min, times 0.5 + `jitter`."""
    return CALL_BACKOFF.delay_s(failed_calls) * (0.5 + jitter)


def with_override(record: PowerRecord, override: PowerOverride | None) -> PowerRecord:
    """Return the record with an override, or without one for None. This also acknowledges a fault."""
    return replace(record, override=override, fault_acknowledged=record.state is PowerState.FAULT)


def _close_daily_on_time(record: PowerRecord, at: datetime, rules: HostConfig) -> DailyOnTime:
    """Return the on-time of the day when the host powers off at `at`."""
    return DailyOnTime(rules.local_time(at).date().isoformat(), c.on_time_today_s(record, at, rules))


def _close_on_interval(record: PowerRecord, at: datetime) -> tuple[OnInterval, ...]:
    """Return the on-intervals, including the one that ends at `at`."""
    if record.on_since is None or at <= record.on_since:
        return record.on_intervals
    return (*record.on_intervals, OnInterval(record.on_since, at, record.on_reason))[-ON_INTERVAL_LIMIT:]
