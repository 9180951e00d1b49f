"""What is known of one host at one moment: all that the law may judge by.

Durations are seconds that this edge has itself watched, on a clock that no calendar moves: a clock that jumps, a
suspended edge or another edge's clock must not make a call look old or a host look idle. After a restart they begin
anew, which at worst leaves the light on a little longer.
"""

from collections.abc import Callable, Hashable
from datetime import datetime
from typing import NamedTuple

from msgspec import Struct

from edge.power.budget import is_budget_exhausted
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


class HeartbeatFacts(Struct, frozen=True):
    """A host's heartbeat. `busy` counts what runs, uploads, is not acknowledged yet, or may hold unsaved outputs.

    `used_by`: who but us uses the machine.
    """

    incarnation: str
    draining: bool = False
    unfinished_jobs: int = 0
    foreign_uses: frozenset[ForeignUse] = frozenset()


class HostFacts(Struct, frozen=True, kw_only=True):
    """One look at a host.

    `steady`: the observer has been connected long enough for absence to count, and has read all jobs. `tells`: the
    switch can say whether the host is off. `called`: this is the host to wake for work that nobody serves.
    `queued`: work waits in a pool that it offers. `held`: records running or cancelling there.
    """

    at: datetime
    absence_counts: bool = True
    heartbeat: HeartbeatFacts | None = None
    can_report_state: bool = True
    reported_power: ReportedPower = ReportedPower.UNKNOWN
    wake_requested: bool = False
    has_queued_work: bool = False
    active_jobs: int = 0
    wake_requested_s: float = 0.0
    idle_s: float = 0.0
    in_state_s: float = 0.0
    call_s: float = 0.0


class Stopwatch:
    """How long things have had the value they have, seen from here; `clock` in seconds, never set back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: dict[Hashable, tuple[object, float]] = {}

    def seconds(self, name: Hashable, value: object) -> float:
        """How long `name` has had this `value`; 0 when it has just got it."""
        now = self._clock()
        known, since = self._seen.get(name, (None, now))
        if name not in self._seen or known != value:
            self._seen[name] = value, now
            return 0.0
        return now - since


# MERGED edge/power/cases.py: The conditions that the table of the law is written in: each a question about one case,
# answered yes or no.


FAILED_CALLS_LIMIT = 3  # calls that fail in a row before the host is at fault; no capacity is no failure
DRAIN_SETTLE_S = 2 * HEARTBEAT_INTERVAL_S  # an acknowledgement sooner than this may be of an earlier drain
QUIET_HOURS_TEXT = "quiet hours"
CALL_ABANDONED_AFTER_S = 30.0  # beyond the call's own timeout: whoever made the call is gone


class PowerCase(NamedTuple):
    """A host as it stands, what is known of it, and its owner's rules."""

    record: PowerRecord
    facts: HostFacts
    rules: HostConfig


Condition = Callable[[PowerCase], bool]


def all_of(*questions: Condition) -> Condition:
    """Whether all of them hold."""
    return lambda case: all(question(case) for question in questions)


def any_of(*questions: Condition) -> Condition:
    """Whether one of them holds."""
    return lambda case: any(question(case) for question in questions)


def unless(question: Condition) -> Condition:
    """Whether it does not hold."""
    return lambda case: not question(case)


def active_override(record: PowerRecord, at: datetime) -> PowerOverride | None:
    """The owner's wish that stands at `at`."""
    hold = record.override
    return None if hold is None or (hold.until is not None and hold.until <= at) else hold


def power_prohibition(record: PowerRecord, at: datetime, rules: HostConfig) -> str | None:
    """What forbids power now, None when nothing does. A wish for it overrides quiet hours, never the budget."""
    hold = active_override(record, at)
    if hold and hold.want == "off":
        return "its owner wants it off" + (f" until {hold.until:%Y-%m-%d %H:%M %Z}" if hold.until else "")
    if is_budget_exhausted(record, at, rules):
        return "its daily budget is used up"
    return QUIET_HOURS_TEXT if rules.is_quiet_at(at) and not hold else None


def is_prohibited(case: PowerCase) -> bool:
    """Quiet hours let a host go that is empty: while somebody uses it they do not bar it, a wish or a budget does."""
    why = power_prohibition(case.record, case.facts.at, case.rules)
    return why is not None and not (why == QUIET_HOURS_TEXT and is_used_by_others(case))


def is_used_by_others(case: PowerCase) -> bool:
    """Somebody uses the machine for whom its owner keeps it on."""
    heart = case.facts.heartbeat
    return heart is not None and not heart.foreign_uses.isdisjoint(case.rules.keep_on_for)


def is_override_on(case: PowerCase) -> bool:
    hold = active_override(case.record, case.facts.at)
    return hold is not None and hold.want == "on"


def is_wake_wanted(case: PowerCase) -> bool:
    """Somebody wants this host awake."""
    return is_override_on(case) or (case.facts.wake_requested and case.facts.wake_requested_s >= case.rules.wake_delay)


def is_needed(case: PowerCase) -> bool:
    """While it is on, somebody wants it to stay."""
    return is_override_on(case) or case.facts.has_queued_work or is_used_by_others(case)


def is_heartbeating(case: PowerCase) -> bool:
    return case.facts.heartbeat is not None


def is_lost(case: PowerCase) -> bool:
    """Silent, by the gone rule."""
    return case.facts.heartbeat is None and case.facts.absence_counts


def is_reported_off(case: PowerCase) -> bool:
    """The switch says so, and no heartbeat gives it the lie."""
    return (
        case.facts.heartbeat is None and case.facts.can_report_state and case.facts.reported_power is ReportedPower.OFF
    )


def is_off(case: PowerCase) -> bool:
    """Off: by the switch's word, or where it has none, by silence."""
    return is_reported_off(case) or (is_lost(case) and not case.facts.can_report_state)


def is_reported_on(case: PowerCase) -> bool:
    return case.facts.reported_power in {ReportedPower.STARTING, ReportedPower.ON}


def is_new_incarnation(case: PowerCase) -> bool:
    """The runner that beats is not the one that was last online."""
    return case.facts.heartbeat is not None and case.facts.heartbeat.incarnation != case.record.incarnation


def has_no_call(case: PowerCase) -> bool:
    return case.record.call is None


def is_call_unanswered(case: PowerCase) -> bool:
    return case.record.call is not None and case.record.call.result is None


def is_call_abandoned(case: PowerCase) -> bool:
    """The call was never answered, and whoever made it has given up by now."""
    return is_call_unanswered(case) and case.facts.call_s >= case.rules.timeout + CALL_ABANDONED_AFTER_S


def is_call_in_flight(case: PowerCase) -> bool:
    """A call may be on its way: no other is made."""
    return is_call_unanswered(case) and not is_call_abandoned(case)


def call_ended_with(outcome: PowerCallOutcome) -> Condition:
    """Whether the last call ended like that."""
    return lambda case: (answer := _call_result(case)) is not None and answer.outcome is outcome


def _call_result(case: PowerCase) -> PowerCallResult | None:
    return case.record.call.result if case.record.call else None


def is_call_done(case: PowerCase) -> bool:
    """The last call ended as it should."""
    return call_ended_with(PowerCallOutcome.DONE)(case)


def is_backoff_over(case: PowerCase) -> bool:
    """The back-off after the last answer is over."""
    return case.record.call is not None and case.facts.call_s >= case.record.call.retry_after_s


def is_call_limit_reached(case: PowerCase) -> bool:
    return case.record.failed_calls >= FAILED_CALLS_LIMIT


def is_boot_overdue(case: PowerCase) -> bool:
    """The boot took too long, and nothing is recorded as running there that a cycle could kill."""
    return is_lost(case) and case.facts.active_jobs == 0 and case.facts.in_state_s >= case.rules.boot_timeout


def is_stop_overdue(case: PowerCase) -> bool:
    return case.facts.in_state_s >= case.rules.stop_timeout


def was_power_cycled(case: PowerCase) -> bool:
    return case.record.failed_boots > 0


def is_idle(case: PowerCase) -> bool:
    """Nothing to do for long enough, after being on for long enough."""
    facts, rules = case.facts, case.rules
    long = facts.idle_s >= rules.idle_after and facts.in_state_s >= rules.min_on
    return long and facts.absence_counts and is_empty(case) and not is_needed(case)


def is_empty(case: PowerCase) -> bool:
    """Nothing runs, uploads or waits for an acknowledgement there, by the host's word and by the records."""
    facts = case.facts
    return facts.active_jobs == 0 and (facts.heartbeat is None or facts.heartbeat.unfinished_jobs == 0)


def is_draining(case: PowerCase) -> bool:
    """The runner says that it takes nothing new, and nothing is left there."""
    return case.facts.heartbeat is not None and case.facts.heartbeat.draining and is_empty(case)


def is_drained(case: PowerCase) -> bool:
    """`quitting`, and said of this drain."""
    return is_draining(case) and case.facts.absence_counts and case.facts.in_state_s >= DRAIN_SETTLE_S


def is_fault_acknowledged(case: PowerCase) -> bool:
    return case.record.fault_acknowledged


def wake_cause(case: PowerCase) -> str:
    """Why somebody wants it awake; a host that came on by itself has nobody."""
    if is_override_on(case):
        return "its owner wants it on"
    return "a job waits for it" if case.facts.wake_requested or case.facts.has_queued_work else "it came on by itself"


def call_message(case: PowerCase) -> str:
    """What the last call's answer said."""
    answer = _call_result(case)
    return answer.why if answer else ""


def is_start_call(case: PowerCase) -> bool:
    return case.record.call is not None and case.record.call.verb is PowerVerb.START
