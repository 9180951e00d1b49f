"""The conditions that the table of the law is written in: each a question about one case, answered yes or no."""

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

from edge.power.facts import Facts
from edge.power.ledger import exhausted
from schemas.host import PRESENCE_EVERY_S
from schemas.power import Answer, Hold, Outcome, PowerRecord, Provider, Verb
from schemas.switch import Switched

ATTEMPTS = 3  # calls that fail in a row before the host is at fault; no capacity is no failure
SETTLE_S = 2 * PRESENCE_EVERY_S  # an acknowledgement sooner than this may be of an earlier drain
QUIET = "quiet hours"
ABANDONED_S = 30.0  # beyond the call's own timeout: whoever made the call is gone


class Case(NamedTuple):
    """A host as it stands, what is known of it, and its owner's rules."""

    record: PowerRecord
    facts: Facts
    rules: Switched


Question = Callable[[Case], bool]


def both(*questions: Question) -> Question:
    """Whether all of them hold."""
    return lambda case: all(question(case) for question in questions)


def either(*questions: Question) -> Question:
    """Whether one of them holds."""
    return lambda case: any(question(case) for question in questions)


def unless(question: Question) -> Question:
    """Whether it does not hold."""
    return lambda case: not question(case)


def held_by(record: PowerRecord, at: datetime) -> Hold | None:
    """The owner's wish that stands at `at`."""
    hold = record.hold
    return None if hold is None or (hold.until is not None and hold.until <= at) else hold


def bar(record: PowerRecord, at: datetime, rules: Switched) -> str | None:
    """What forbids power now, None when nothing does. A wish for it overrides quiet hours, never the budget."""
    hold = held_by(record, at)
    if hold and hold.want == "off":
        return "its owner wants it off" + (f" until {hold.until:%Y-%m-%d %H:%M %Z}" if hold.until else "")
    if exhausted(record, at, rules):
        return "its daily budget is used up"
    return QUIET if rules.is_quiet(at) and not hold else None


def barred(case: Case) -> bool:
    """Quiet hours let a host go that is empty: while somebody uses it they do not bar it, a wish or a budget does."""
    why = bar(case.record, case.facts.at, case.rules)
    return why is not None and not (why == QUIET and used(case))


def used(case: Case) -> bool:
    """Somebody uses the machine for whom its owner keeps it on."""
    heart = case.facts.heart
    return heart is not None and not heart.used_by.isdisjoint(case.rules.stays_for)


def wished_on(case: Case) -> bool:
    hold = held_by(case.record, case.facts.at)
    return hold is not None and hold.want == "on"


def called(case: Case) -> bool:
    """Somebody wants this host awake."""
    return wished_on(case) or (case.facts.called and case.facts.called_s >= case.rules.wake_delay)


def needed(case: Case) -> bool:
    """While it is on, somebody wants it to stay."""
    return wished_on(case) or case.facts.queued or used(case)


def beats(case: Case) -> bool:
    return case.facts.heart is not None


def gone(case: Case) -> bool:
    """Silent, by the gone rule."""
    return case.facts.heart is None and case.facts.steady


def told_off(case: Case) -> bool:
    """The switch says so, and no heartbeat gives it the lie."""
    return case.facts.heart is None and case.facts.tells and case.facts.provider is Provider.OFF


def dark(case: Case) -> bool:
    """Off: by the switch's word, or where it has none, by silence."""
    return told_off(case) or (gone(case) and not case.facts.tells)


def lit(case: Case) -> bool:
    return case.facts.provider in {Provider.STARTING, Provider.ON}


def reborn(case: Case) -> bool:
    """The runner that beats is not the one that was last online."""
    return case.facts.heart is not None and case.facts.heart.incarnation != case.record.incarnation


def uncalled(case: Case) -> bool:
    return case.record.call is None


def unanswered(case: Case) -> bool:
    return case.record.call is not None and case.record.call.answer is None


def lost(case: Case) -> bool:
    """The call was never answered, and whoever made it has given up by now."""
    return unanswered(case) and case.facts.call_s >= case.rules.timeout + ABANDONED_S


def open_call(case: Case) -> bool:
    """A call may be on its way: no other is made."""
    return unanswered(case) and not lost(case)


def answered(outcome: Outcome) -> Question:
    """Whether the last call ended like that."""
    return lambda case: (answer := _answer(case)) is not None and answer.outcome is outcome


def _answer(case: Case) -> Answer | None:
    return case.record.call.answer if case.record.call else None


def done(case: Case) -> bool:
    """The last call ended as it should."""
    return answered(Outcome.DONE)(case)


def rested(case: Case) -> bool:
    """The back-off after the last answer is over."""
    return case.record.call is not None and case.facts.call_s >= case.record.call.wait_s


def exhausted_attempts(case: Case) -> bool:
    return case.record.attempts >= ATTEMPTS


def boot_over(case: Case) -> bool:
    """The boot took too long, and nothing is recorded as running there that a cycle could kill."""
    return gone(case) and case.facts.held == 0 and case.facts.in_state_s >= case.rules.boot_timeout


def stop_over(case: Case) -> bool:
    return case.facts.in_state_s >= case.rules.stop_timeout


def cycled(case: Case) -> bool:
    return case.record.boots > 0


def idle(case: Case) -> bool:
    """Nothing to do for long enough, after being on for long enough."""
    facts, rules = case.facts, case.rules
    long = facts.idle_s >= rules.idle_after and facts.in_state_s >= rules.min_on
    return long and facts.steady and empty(case) and not needed(case)


def empty(case: Case) -> bool:
    """Nothing runs, uploads or waits for an acknowledgement there, by the host's word and by the records."""
    facts = case.facts
    return facts.held == 0 and (facts.heart is None or facts.heart.busy == 0)


def quitting(case: Case) -> bool:
    """The runner says that it takes nothing new, and nothing is left there."""
    return case.facts.heart is not None and case.facts.heart.draining and empty(case)


def drained(case: Case) -> bool:
    """`quitting`, and said of this drain."""
    return quitting(case) and case.facts.steady and case.facts.in_state_s >= SETTLE_S


def pardoned(case: Case) -> bool:
    return case.record.pardoned


def cause(case: Case) -> str:
    """Why somebody wants it awake; a host that came on by itself has nobody."""
    if wished_on(case):
        return "its owner wants it on"
    return "a job waits for it" if case.facts.called or case.facts.queued else "it came on by itself"


def said(case: Case) -> str:
    """What the last call's answer said."""
    answer = _answer(case)
    return answer.why if answer else ""


def is_start(case: Case) -> bool:
    return case.record.call is not None and case.record.call.verb is Verb.START
