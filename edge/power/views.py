"""Power for clients: the state and history of a host, why it is on, why a job waits for it, and for how long. Pure.

All rules that keep a host on are shown. A rule holds for as long as the transitions to DRAINING and STOPPING are
refused for it, so the conditions are those of the table of transitions.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from statistics import median
from typing import NamedTuple

from msgspec import to_builtins
from msgspec.structs import replace

from edge.core.messages import CATALOGUE, KEEP_REASON_TEXTS, LocalizedText
from edge.hosts.registry import WakeForecast
from edge.power import conditions as c
from edge.power.conditions import HostFacts, PowerCase, active_override, all_of, unless
from schemas.host import HostView, KeepReason, KeptOn
from schemas.job import WaitReason
from schemas.power import PowerCallOutcome, PowerRecord, PowerState, ReportedPower
from schemas.texts import Language

NOTICE_KINDS: Mapping[PowerState, str] = {
    PowerState.WAKING: "host_waking",
    PowerState.BLOCKED: "host_blocked",
    PowerState.FAULT: "host_fault",
}

WAIT_REASONS: Mapping[PowerState, WaitReason] = {
    PowerState.OFF: WaitReason.HOST_OFF,
    PowerState.WAKING: WaitReason.HOST_WAKING,
    PowerState.STOPPING: WaitReason.HOST_OFF,
    PowerState.BLOCKED: WaitReason.HOST_BLOCKED,
    PowerState.FAULT: WaitReason.HOST_FAULT,
}

CANNOT_POWER_ON = "power it on ({why}): the edge asks its driver again by itself"  # a task in `waits` of a Host

# Of several hosts, the reason of the one closest to starting the job is shown.
REASONS_NEAREST_FIRST = (
    WaitReason.HOST_BOOTING,
    WaitReason.HOST_WAKING,
    WaitReason.HOST_OFF,
    WaitReason.HOST_BLOCKED,
    WaitReason.HOST_FAULT,
)


def wait_reason(record: PowerRecord, reported: ReportedPower) -> WaitReason | None:
    """Return why a job waits for the host; None while it is online."""
    if record.state is PowerState.WAKING and reported is ReportedPower.ON:
        return WaitReason.HOST_BOOTING
    return WAIT_REASONS.get(record.state)


def wake_median_s(record: PowerRecord) -> float | None:
    """Return the median of the measured seconds from the start call to the first heartbeat."""
    return median(record.wake_durations_s) if record.wake_durations_s else None


def wake_left_s(record: PowerRecord, at: datetime) -> float | None:
    """Return the expected seconds until the first heartbeat: the median wake, less the time since the start call."""
    usual = wake_median_s(record)
    if usual is None or record.state is not PowerState.WAKING or record.call is None:
        return usual
    passed_s = max(0.0, (at - record.call.at).total_seconds())  # the clock may have been set back
    return max(0.0, usual - passed_s)


def nearest_forecast(forecasts: Iterable[WakeForecast]) -> WakeForecast | None:
    """Return the forecast of the host closest to starting the job."""
    return min(
        forecasts, key=lambda forecast: (REASONS_NEAREST_FIRST.index(forecast.reason), forecast.host), default=None
    )


def forecast_wake(host: str, record: PowerRecord, reason: WaitReason, at: datetime) -> WakeForecast:
    """Return when the host can take jobs, which wait for it with this reason."""
    return WakeForecast(reason, host, wake_median_s(record), wake_left_s(record, at), _reason_blocked(record))


def _reason_blocked(record: PowerRecord) -> str:
    """Return what the power driver said last about a host that it has no machine for, such as Slurm's reason, or ""."""
    result = record.call.result if record.call is not None and record.state is PowerState.BLOCKED else None
    return result.why if result is not None and result.outcome is PowerCallOutcome.NO_CAPACITY else ""


def with_unknown_power(view: HostView, why: str) -> HostView:
    """Return `view` with the reason for which the power driver cannot report the state."""
    return replace(view, waits=(*view.waits, f"ask the power driver for its state ({why}): see that driver's settings"))


def host_view(
    host: str, seen: HostView | None, record: PowerRecord, at: datetime, kept_on: tuple[KeptOn, ...]
) -> HostView:
    """Return the host as `/v1/hosts` shows it. `seen`: its view by its heartbeats; None if it was never seen."""
    override, blocked = active_override(record, at), _reason_blocked(record)
    view = seen or HostView(id=host, state=record.state)
    is_online = record.state is PowerState.ONLINE and seen is not None
    return replace(
        view,
        state=view.state if is_online else record.state,
        since=record.since,
        wake_median_s=wake_median_s(record),
        hold=None if override is None else to_builtins(override),
        declared=True,
        waits=view.waits or ((CANNOT_POWER_ON.format(why=blocked),) if blocked else ()),
        history=tuple(to_builtins(change) for change in record.history),
        kept_on=kept_on,
    )


def localize(view: HostView, language: Language) -> HostView:
    """Return `view` with the reasons of its changes and the tasks that it cannot do in `language`."""
    if language is Language.EN:
        return view
    history = tuple({**change, "why": CATALOGUE.translate(change["why"])} for change in view.history)
    return replace(view, history=history, waits=tuple(CATALOGUE.translate(task) for task in view.waits))


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
