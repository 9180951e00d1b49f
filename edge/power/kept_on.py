"""Why a host is on: one row for each rule that keeps it on. Pure.

All rows that hold are shown. A row holds for as long as the transitions to DRAINING and STOPPING are refused for it, so
the conditions are those of the table of transitions.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from edge.core.messages import CATALOGUE, KEEP_REASON_TEXTS, LocalizedText
from edge.power import conditions as c
from edge.power.conditions import HostFacts, PowerCase, all_of, unless
from schemas.host import KeepReason, KeptOn
from schemas.power import PowerState
from schemas.texts import Language

Until = Callable[[PowerCase], datetime | None]


class KeepRule(NamedTuple):
    """A reason that applies if `condition` holds, and the time until which it does; None: it is not known."""

    reason: KeepReason
    condition: c.Condition
    until: Until = lambda _case: None


def _after(left_s: Callable[[PowerCase], float]) -> Until:
    def until(case: PowerCase) -> datetime | None:
        moment = case.facts.at + timedelta(seconds=left_s(case))
        return moment.replace(microsecond=0)

    return until


def _override_end(case: PowerCase) -> datetime | None:
    override = c.active_override(case.record, case.facts.at)
    return override.until if override else None


def _has_work(case: PowerCase) -> bool:
    return case.facts.has_queued_work and not case.facts.is_released


def _has_waking_work(case: PowerCase) -> bool:
    return case.facts.has_waking_work


def _is_reserved(case: PowerCase) -> bool:
    return case.facts.is_reserved


def _cools_down(case: PowerCase) -> bool:
    return case.facts.cool_down_left_s is not None and not case.facts.is_released


def _is_younger_than_min_on(case: PowerCase) -> bool:
    return case.facts.in_state_s < case.rules.min_on


def _may_not_be_cycled(case: PowerCase) -> bool:
    return (case.facts.has_pool_rule or case.facts.is_released) and c.was_stopped_lately(case)


def _is_idle_too_shortly(case: PowerCase) -> bool:
    return c.is_heartbeating(case) and case.facts.idle_s < case.rules.idle_after


def _cycle_left_s(case: PowerCase) -> float:
    stopped = case.record.on_intervals[-1].until
    return c.POWER_CYCLE_INTERVAL_S - (case.facts.at - stopped).total_seconds()


NOTHING_THERE = all_of(c.is_empty, unless(c.is_needed))
RUNS_JOBS = KeepRule(KeepReason.JOBS_RUN, all_of(unless(c.is_empty), unless(c.is_unreadable)))
UNREADABLE = KeepRule(KeepReason.UNREADABLE, c.is_unreadable)
MAINTENANCE = KeepRule(KeepReason.MAINTENANCE, c.is_left_alone)
FREE = all_of(unless(c.is_prohibited), unless(c.is_left_alone))  # the rules below apply

KEEP_RULES: Mapping[PowerState, Sequence[KeepRule]] = {
    PowerState.ONLINE: (
        MAINTENANCE,
        KeepRule(KeepReason.OPERATOR, all_of(FREE, c.is_override_on), _override_end),
        UNREADABLE,
        RUNS_JOBS,
        KeepRule(KeepReason.JOBS_WAIT, all_of(FREE, _has_work, _has_waking_work)),
        KeepRule(KeepReason.LOW_JOBS_WAIT, all_of(FREE, _has_work, unless(_has_waking_work))),
        KeepRule(KeepReason.IN_USE, all_of(FREE, c.is_used_by_others)),
        KeepRule(KeepReason.POOL_MIN, all_of(FREE, _is_reserved)),
        KeepRule(
            KeepReason.COOL_DOWN,
            all_of(FREE, _cools_down),
            _after(lambda case: case.facts.cool_down_left_s or 0.0),
        ),
        KeepRule(
            KeepReason.MIN_ON,
            all_of(FREE, _is_younger_than_min_on),
            _after(lambda case: case.rules.min_on - case.facts.in_state_s),
        ),
        KeepRule(KeepReason.POWER_CYCLE, all_of(FREE, _may_not_be_cycled), _after(_cycle_left_s)),
        KeepRule(
            KeepReason.IDLE_TIMER,
            all_of(FREE, NOTHING_THERE, _is_idle_too_shortly),
            _after(lambda case: case.rules.idle_after - case.facts.idle_s),
        ),
        KeepRule(KeepReason.EDGE_NEW, all_of(FREE, lambda case: not case.facts.absence_counts)),
    ),
    PowerState.DRAINING: (
        MAINTENANCE,
        UNREADABLE,
        RUNS_JOBS,
        KeepRule(KeepReason.PROHIBITED, all_of(unless(c.is_left_alone), c.is_prohibited)),
        KeepRule(KeepReason.DRAINS, all_of(unless(c.is_left_alone), unless(c.is_prohibited))),
    ),
}


def keep_reasons(case: PowerCase, language: Language = Language.EN) -> tuple[KeptOn, ...]:
    """Return why the host is on, in the order of the table; nothing in a state in which it is not kept on."""
    return tuple(
        _describe(rule, case, language) for rule in KEEP_RULES.get(case.record.state, ()) if rule.condition(case)
    )


def _describe(rule: KeepRule, case: PowerCase, language: Language) -> KeptOn:
    facts, until = case.facts, rule.until(case)
    prohibition = c.power_prohibition(case.record, facts.at, case.rules) or ""
    text: LocalizedText = KEEP_REASON_TEXTS[rule.reason]
    message = text.render(
        language,
        prohibition=CATALOGUE.localize(prohibition, language),
        uses=", ".join(_kept_uses(facts, case)),
        until=f"{until:%Y-%m-%d %H:%M:%S} UTC" if until else "",
    )
    return KeptOn(rule.reason, message, until)


def _kept_uses(facts: HostFacts, case: PowerCase) -> list[str]:
    uses = facts.heartbeat.foreign_uses if facts.heartbeat else frozenset()
    return sorted(uses & set(case.rules.keep_on_for))
