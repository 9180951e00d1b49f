"""The conditions of the table of power states, and the facts that they judge by. Pure.

Durations in facts are seconds that this edge has watched on a monotonic clock. A clock that jumps, a suspended edge,
or the clock of another edge must not make a call look old or a host look idle. After a restart durations start at
zero. The worst case is that a host stays on slightly longer.
"""

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

from msgspec import Struct

from edge.core.clock import HOUR_S
from schemas.host import HEARTBEAT_INTERVAL_S
from schemas.host_config import HostConfig
from schemas.power import (
    ForeignUse,
    PowerCallOutcome,
    PowerCallResult,
    PowerOverride,
    PowerRecord,
    PowerVerb,
    ReportedPower,
)

FAILED_CALLS_LIMIT = 3  # consecutive failed calls before FAULT; NO_CAPACITY leads to BLOCKED instead
DRAIN_SETTLE_S = 2 * HEARTBEAT_INTERVAL_S  # before that, `draining` in a heartbeat may belong to an earlier drain
QUIET_HOURS_TEXT = "quiet hours"
JOB_WAITS = "a job waits for it"
POWER_CYCLE_INTERVAL_S = 3600.0  # between two stops of a host by the rule of its pools
CALL_ABANDONED_AFTER_S = 30.0  # after the call's own timeout: the edge that made the call has died


class HeartbeatFacts(Struct, frozen=True):
    """Facts of a host's heartbeat.

    `unfinished_jobs`: jobs that run, upload or are not acknowledged, and containers that may have unsaved outputs.
    `foreign_uses`: uses of the machine by others. `is_readable`: false if this edge cannot read the heartbeat; the
    other facts are unknown then.
    """

    incarnation: str
    draining: bool = False
    unfinished_jobs: int = 0
    foreign_uses: frozenset[ForeignUse] = frozenset()
    is_readable: bool = True


UNREADABLE_HEARTBEAT = HeartbeatFacts("", is_readable=False)


class HostFacts(Struct, frozen=True, kw_only=True):
    """The knowledge of this edge about a host at the time `at`.

    `absence_counts`: this edge has been connected long enough to treat a missing heartbeat as absence, and has read
    all jobs. `can_report_state`: the power driver can report OFF. `wake_requested`: the pools need this host;
    `wake_reason`: why. `has_queued_work`: jobs wait in a pool that it offers. `active_jobs`: jobs recorded as
    running or cancelling there. `in_maintenance`: an operator works on it. `has_waking_work`: of the queued work, some
    wakes hosts: it is not of priority `low`.

    `is_reserved`: the `min` of a pool keeps it on. `is_released`: the other hosts of its pools suffice, and have for
    `cool_down_s`. `cool_down_left_s`: the rest of that time while they suffice. `has_pool_rule`: the settings have a
    rule for one of its pools.

    Durations. `wake_requested_s`: since `wake_requested` became true, 0 while it is false. `idle_s`: since the host
    has been online and empty, with no queued work and no use by others that keeps it on; 0 while it is not idle.
    `in_state_s`: since the record entered its state. `call_s`: since the last call was made, or since its result came.
    """

    at: datetime
    absence_counts: bool = True
    heartbeat: HeartbeatFacts | None = None
    can_report_state: bool = True
    reported_power: ReportedPower = ReportedPower.UNKNOWN
    wake_requested: bool = False
    wake_reason: str = ""
    has_queued_work: bool = False
    has_waking_work: bool = False
    active_jobs: int = 0
    in_maintenance: bool = False
    is_reserved: bool = False
    is_released: bool = False
    cool_down_left_s: float | None = None
    has_pool_rule: bool = False
    wake_requested_s: float = 0.0
    idle_s: float = 0.0
    in_state_s: float = 0.0
    call_s: float = 0.0


class PowerCase(NamedTuple):
    """The input of a condition: a host's record, the facts, and its rules."""

    record: PowerRecord
    facts: HostFacts
    rules: HostConfig


Condition = Callable[[PowerCase], bool]


def all_of(*conditions: Condition) -> Condition:
    """Return the condition that holds if all `conditions` hold."""
    return lambda case: all(condition(case) for condition in conditions)


def any_of(*conditions: Condition) -> Condition:
    """Return the condition that holds if one of `conditions` holds."""
    return lambda case: any(condition(case) for condition in conditions)


def unless(condition: Condition) -> Condition:
    """Return the condition that holds if `condition` does not."""
    return lambda case: not condition(case)


def active_override(record: PowerRecord, at: datetime) -> PowerOverride | None:
    """Return the override that applies at `at`, or None."""
    override = record.override
    return None if override is None or (override.until is not None and override.until <= at) else override


def power_prohibition(record: PowerRecord, at: datetime, rules: HostConfig) -> str | None:
    """Return why the host must be off now, or None. An override "on" ignores quiet hours, but never the budget."""
    override = active_override(record, at)
    if override and override.want == "off":
        return "the operator wants it off" + (f" until {override.until:%Y-%m-%d %H:%M %Z}" if override.until else "")
    if is_budget_exhausted(record, at, rules):
        return "its daily budget is used up"
    return QUIET_HOURS_TEXT if rules.is_quiet_at(at) and not override else None


def is_prohibited(case: PowerCase) -> bool:
    """Return whether the host must be off. Quiet hours do not apply while others use it; overrides and budget do."""
    why = power_prohibition(case.record, case.facts.at, case.rules)
    return why is not None and not (why == QUIET_HOURS_TEXT and is_used_by_others(case))


def is_used_by_others(case: PowerCase) -> bool:
    """Return whether others use the machine in a way for which `keep_on_for` keeps it on."""
    heartbeat = case.facts.heartbeat
    return heartbeat is not None and not heartbeat.foreign_uses.isdisjoint(case.rules.keep_on_for)


def is_in_maintenance(case: PowerCase) -> bool:
    return case.facts.in_maintenance


def is_left_alone(case: PowerCase) -> bool:
    """Return whether no rule may switch this host: it is in maintenance, and its operator has set no override."""
    return case.facts.in_maintenance and active_override(case.record, case.facts.at) is None


def is_override_on(case: PowerCase) -> bool:
    override = active_override(case.record, case.facts.at)
    return override is not None and override.want == "on"


def is_wake_wanted(case: PowerCase) -> bool:
    """Return whether an override or waiting jobs ask for this host to be on."""
    return is_override_on(case) or (case.facts.wake_requested and case.facts.wake_requested_s >= case.rules.wake_delay)


def is_needed(case: PowerCase) -> bool:
    """Return whether a host that is on should stay on."""
    facts = case.facts
    has_work = facts.has_queued_work and not facts.is_released
    return is_override_on(case) or facts.is_reserved or has_work or is_used_by_others(case)


def is_heartbeating(case: PowerCase) -> bool:
    return case.facts.heartbeat is not None


def is_unreadable(case: PowerCase) -> bool:
    """Return whether the host has a heartbeat that this edge cannot read."""
    return case.facts.heartbeat is not None and not case.facts.heartbeat.is_readable


def is_lost(case: PowerCase) -> bool:
    """Return whether the host has no heartbeat, and this edge has been connected long enough for that to count."""
    return case.facts.heartbeat is None and case.facts.absence_counts


def is_reported_off(case: PowerCase) -> bool:
    """Return whether the power driver reports OFF and no heartbeat contradicts it."""
    return (
        case.facts.heartbeat is None and case.facts.can_report_state and case.facts.reported_power is ReportedPower.OFF
    )


def is_off(case: PowerCase) -> bool:
    """Return whether the host is off: by the driver's report, or if it cannot report, by absence."""
    return is_reported_off(case) or (is_lost(case) and not case.facts.can_report_state)


def is_reported_on(case: PowerCase) -> bool:
    return case.facts.reported_power in {ReportedPower.STARTING, ReportedPower.ON}


def is_reported_pending(case: PowerCase) -> bool:
    return case.facts.heartbeat is None and case.facts.reported_power is ReportedPower.PENDING


def is_new_incarnation(case: PowerCase) -> bool:
    """Return whether the heartbeat is of another runner process than the one that was last online."""
    heartbeat = case.facts.heartbeat
    return heartbeat is not None and heartbeat.is_readable and heartbeat.incarnation != case.record.incarnation


def has_no_call(case: PowerCase) -> bool:
    return case.record.call is None


def is_call_unanswered(case: PowerCase) -> bool:
    return case.record.call is not None and case.record.call.result is None


def is_call_abandoned(case: PowerCase) -> bool:
    """Return whether the call has no result although its timeout is long over."""
    return is_call_unanswered(case) and case.facts.call_s >= case.rules.timeout + CALL_ABANDONED_AFTER_S


def is_call_in_flight(case: PowerCase) -> bool:
    """Return whether a call may still take effect, so that no other call may be made."""
    return is_call_unanswered(case) and not is_call_abandoned(case)


def call_ended_with(outcome: PowerCallOutcome) -> Condition:
    """Return the condition that the last call ended with `outcome`."""
    return lambda case: (result := _call_result(case)) is not None and result.outcome is outcome


def _call_result(case: PowerCase) -> PowerCallResult | None:
    return case.record.call.result if case.record.call else None


def is_call_done(case: PowerCase) -> bool:
    """Return whether the last call succeeded."""
    return call_ended_with(PowerCallOutcome.DONE)(case)


def is_backoff_over(case: PowerCase) -> bool:
    """Return whether the backoff after the last result is over."""
    return case.record.call is not None and case.facts.call_s >= case.record.call.retry_after_s


def is_call_limit_reached(case: PowerCase) -> bool:
    return case.record.failed_calls >= FAILED_CALLS_LIMIT


def is_boot_overdue(case: PowerCase) -> bool:
    """Return whether the boot took too long, and no job is recorded there that a power cycle could kill."""
    return is_lost(case) and case.facts.active_jobs == 0 and case.facts.in_state_s >= case.rules.boot_timeout


def is_stop_overdue(case: PowerCase) -> bool:
    return case.facts.in_state_s >= case.rules.stop_timeout


def was_power_cycled(case: PowerCase) -> bool:
    return case.record.failed_boots > 0


def is_idle(case: PowerCase) -> bool:
    """Return whether the host has been idle for `idle_after` and on for `min_on`."""
    facts, rules = case.facts, case.rules
    is_long_enough = facts.idle_s >= rules.idle_after and facts.in_state_s >= rules.min_on
    if facts.has_pool_rule and was_stopped_lately(case):
        return False
    return is_long_enough and facts.absence_counts and is_empty(case) and not is_needed(case)


def is_superfluous(case: PowerCase) -> bool:
    """Return whether the other hosts of its pools suffice, and it has been on for `min_on`. It may run jobs."""
    facts = case.facts
    is_long_enough = facts.in_state_s >= case.rules.min_on and not was_stopped_lately(case)
    return facts.is_released and is_long_enough and facts.absence_counts and not is_needed(case)


def was_stopped_lately(case: PowerCase) -> bool:
    """Return whether the host was off within the last POWER_CYCLE_INTERVAL_S, so that no rule may stop it again.

    Stops are that far apart, and therefore power cycles too. A start is never delayed.
    """
    intervals = case.record.on_intervals
    passed_s = (case.facts.at - intervals[-1].until).total_seconds() if intervals else -1.0
    return 0 <= passed_s < POWER_CYCLE_INTERVAL_S  # a negative time: the clock was set back


def is_empty(case: PowerCase) -> bool:
    """Return whether nothing runs, uploads or waits for an ack there, by the heartbeat and by the job records.

    A host whose heartbeat this edge cannot read may do anything, so it is never empty.
    """
    facts = case.facts
    is_silent_or_empty = facts.heartbeat is None or facts.heartbeat.unfinished_jobs == 0
    return facts.active_jobs == 0 and is_silent_or_empty and not is_unreadable(case)


def reports_drained(case: PowerCase) -> bool:
    """Return whether the heartbeat says that the runner accepts no new jobs, and that none is left."""
    return case.facts.heartbeat is not None and case.facts.heartbeat.draining and is_empty(case)


def is_drained(case: PowerCase) -> bool:
    """Return whether `reports_drained` holds, and belongs to the current drain."""
    return reports_drained(case) and case.facts.absence_counts and case.facts.in_state_s >= DRAIN_SETTLE_S


def is_fault_acknowledged(case: PowerCase) -> bool:
    return case.record.fault_acknowledged


def wake_cause(case: PowerCase) -> str:
    """Return why the host is on or should be."""
    if is_override_on(case):
        return "the operator wants it on"
    if case.facts.wake_requested and case.facts.wake_reason:
        return case.facts.wake_reason
    return JOB_WAITS if case.facts.wake_requested or case.facts.has_queued_work else "it came on by itself"


def call_message(case: PowerCase) -> str:
    """Return the message of the last call's result."""
    result = _call_result(case)
    return result.why if result else ""


def is_start_call(case: PowerCase) -> bool:
    return case.record.call is not None and case.record.call.verb is PowerVerb.START


def on_time_today_s(record: PowerRecord, at: datetime, rules: HostConfig) -> float:
    """Return the on-time in seconds on the day of `at`, including the current interval."""
    local = rules.local_time(at)
    ended = record.daily_on_time.on_s if record.daily_on_time.day == local.date().isoformat() else 0.0
    if record.on_since is None:
        return ended
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
    return ended + max(0.0, (at - max(record.on_since, midnight)).total_seconds())


def is_budget_exhausted(record: PowerRecord, at: datetime, rules: HostConfig) -> bool:
    """Return whether the daily budget, in hours or in money, is used up."""
    if rules.budget is None:
        return False
    hours = on_time_today_s(record, at, rules) / HOUR_S
    money = hours * rules.price.hourly_cost if rules.price else 0.0
    limits = ((rules.budget.hours, hours), (rules.budget.money, money))
    return any(limit is not None and spent >= limit for limit, spent in limits)
