"""The table of power states: for each state the possible transitions. The first whose condition holds is taken.

A host is online only by its runner's heartbeat. It is off only by its power driver's report, or, if the driver cannot
report, when it is gone (no heartbeat while this edge is connected).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from edge.power import conditions as c
from edge.power.conditions import all_of, unless
from schemas.power import PowerCallOutcome, PowerVerb
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
