"""The law of a host's power: for every state the rows that may be taken, the first that holds counts.

Two truths are kept apart: online only by the runner's heartbeat, off only by the switch's word (or, where it has none,
by silence under the gone rule).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from edge.power import conditions as c
from edge.power.conditions import all_of, unless
from schemas.power import PowerCallOutcome, PowerVerb
from schemas.power import PowerState as S


class PowerTransition(NamedTuple):
    """When it holds, the host goes to `to`; with an `order`, by a call of its switch.

    `to` None: nothing is to be done, whatever stands below. `why` is what history and people are told.
    """

    condition: c.Condition
    target: S | None
    why: str = ""
    verb: PowerVerb | None = None


START, STOP = PowerVerb.START, PowerVerb.STOP
WAKE_ALLOWED = all_of(c.is_wake_wanted, unless(c.is_prohibited))
WORK_ALLOWED = all_of(c.is_needed, unless(c.is_prohibited))
RUNNER_IN_USE = all_of(c.is_heartbeating, c.any_of(WORK_ALLOWED, unless(c.is_draining)))
CALL_DONE, CALL_NO_CAPACITY, CALL_FAILED = (
    c.is_call_done,
    c.call_ended_with(PowerCallOutcome.NO_CAPACITY),
    c.call_ended_with(PowerCallOutcome.FAILED),
)
RUNNER_ANSWERS = "its runner answers"
RUNNER_SILENT = "its runner fell silent"
IS_OFF = "it is off"
NEEDED_AGAIN = "it is needed again"
NOT_WANTED = "nobody waits for it any more"
CAUSE = "{cause}"
PROHIBITION = "{bar}"

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
        PowerTransition(CALL_NO_CAPACITY, S.BLOCKED, "no capacity: {said}"),
        PowerTransition(all_of(CALL_FAILED, c.is_call_limit_reached), S.FAULT, "cannot be switched on: {said}"),
        PowerTransition(all_of(CALL_FAILED, c.is_prohibited), S.BLOCKED, PROHIBITION),
        PowerTransition(all_of(CALL_FAILED, unless(c.is_wake_wanted), c.is_off), S.OFF, NOT_WANTED),
        PowerTransition(all_of(CALL_FAILED, c.is_backoff_over, WAKE_ALLOWED), S.WAKING, verb=START),
        PowerTransition(all_of(c.has_no_call, c.is_off), S.OFF, IS_OFF),
        PowerTransition(
            all_of(c.is_boot_overdue, c.was_power_cycled), S.FAULT, "its runner did not come, also after a power cycle"
        ),
        PowerTransition(c.is_boot_overdue, S.STOPPING, "its runner did not come in time: one power cycle", STOP),
    ),
    S.BLOCKED: (
        PowerTransition(c.is_heartbeating, S.ONLINE, RUNNER_ANSWERS),
        PowerTransition(all_of(c.is_call_abandoned, WAKE_ALLOWED), S.BLOCKED, verb=START),
        PowerTransition(c.is_call_in_flight, None),
        PowerTransition(CALL_DONE, S.WAKING, "there is capacity again"),
        PowerTransition(c.is_reported_on, S.WAKING, "its switch says that it is on"),
        PowerTransition(all_of(unless(c.is_wake_wanted), c.is_off), S.OFF, NOT_WANTED),
        PowerTransition(all_of(WAKE_ALLOWED, c.has_no_call), S.WAKING, CAUSE, START),
        PowerTransition(all_of(WAKE_ALLOWED, c.is_backoff_over), S.BLOCKED, verb=START),
    ),
    S.ONLINE: (
        PowerTransition(c.is_off, S.OFF, "it went off by itself"),
        PowerTransition(c.is_lost, S.WAKING, RUNNER_SILENT),
        PowerTransition(all_of(c.is_heartbeating, c.is_prohibited), S.DRAINING, PROHIBITION),
        PowerTransition(all_of(c.is_heartbeating, c.is_idle), S.DRAINING, "nothing to do"),
    ),
    S.DRAINING: (
        PowerTransition(c.is_reported_off, S.OFF, "it went off by itself"),
        PowerTransition(all_of(c.is_heartbeating, WORK_ALLOWED), S.ONLINE, NEEDED_AGAIN),
        PowerTransition(all_of(c.is_lost, WORK_ALLOWED), S.WAKING, RUNNER_SILENT),
        PowerTransition(all_of(c.is_lost, c.is_empty), S.STOPPING, "it fell silent while it drained", STOP),
        PowerTransition(c.is_drained, S.STOPPING, "it is drained", STOP),
    ),
    S.STOPPING: (
        PowerTransition(all_of(c.is_call_abandoned, unless(RUNNER_IN_USE)), S.STOPPING, verb=STOP),
        PowerTransition(c.is_call_in_flight, None),
        PowerTransition(c.is_reported_off, S.OFF, IS_OFF),
        PowerTransition(all_of(unless(CALL_DONE), c.is_heartbeating, WORK_ALLOWED), S.ONLINE, NEEDED_AGAIN),
        PowerTransition(
            all_of(unless(CALL_DONE), c.is_heartbeating, unless(c.is_draining)), S.DRAINING, "its runner has not let go"
        ),
        PowerTransition(all_of(unless(CALL_DONE), c.is_call_limit_reached), S.FAULT, "cannot be switched off: {said}"),
        PowerTransition(all_of(unless(CALL_DONE), c.is_backoff_over), S.STOPPING, verb=STOP),
        PowerTransition(unless(CALL_DONE), None),
        PowerTransition(c.is_off, S.OFF, IS_OFF),
        PowerTransition(c.is_stop_overdue, S.FAULT, "it does not go off"),
    ),
    S.FAULT: (
        PowerTransition(all_of(c.is_heartbeating, c.is_new_incarnation), S.ONLINE, RUNNER_ANSWERS),
        PowerTransition(all_of(c.is_heartbeating, WORK_ALLOWED), S.ONLINE, "work came, and its runner answers"),
        PowerTransition(all_of(c.is_heartbeating, c.is_fault_acknowledged), S.ONLINE, "its owner has looked"),
        PowerTransition(all_of(c.is_fault_acknowledged, WAKE_ALLOWED), S.WAKING, CAUSE, START),
        PowerTransition(all_of(c.is_fault_acknowledged, c.is_off), S.OFF, "its owner has looked"),
    ),
}
