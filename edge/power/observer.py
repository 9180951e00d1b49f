"""Turns what is seen into the facts of one host: with the time that this edge has watched each of them."""

from collections.abc import Mapping
from typing import NamedTuple

from msgspec.structs import replace

from edge.power import demand
from edge.power.cases import Case, bar, empty, used
from edge.power.facts import Facts, Heart, Stopwatch
from edge.power.sight import Outlook
from schemas.host import Presence
from schemas.power import PowerRecord, PowerState, Provider
from schemas.switch import HostDeclaration


def state_key(record: PowerRecord) -> tuple[PowerState, object]:
    """What tells one stay in a state from the next."""
    return record.state, record.since


class Told(NamedTuple):
    """Whether a host's switch can tell that it is off, and its last word."""

    tells: bool
    word: Provider


class Observer:
    """The declared hosts, watched by one edge."""

    def __init__(self, declared: Mapping[str, HostDeclaration], watch: Stopwatch) -> None:
        self._declared = declared
        self._watch = watch

    def called(self, records: Mapping[str, PowerRecord], outlook: Outlook) -> frozenset[str]:
        """The hosts that should be awake for work that nobody serves."""
        candidates = [
            demand.Candidate(
                host,
                rules.rank,
                outlook.offered.get(host),
                records[host].state,
                self._in_state_s(host, records[host]),
                rules.fallback_after,
            )
            for host, rules in self._declared.items()
        ]
        return demand.called(outlook.waking, self._served(records, outlook), candidates)

    def _served(self, records: Mapping[str, PowerRecord], outlook: Outlook) -> set[str]:
        serving = (host for host, here in outlook.present.items() if self._serves(here, records, outlook))
        return {pool for host in serving for pool in outlook.able[host]}

    def _serves(self, here: Presence, records: Mapping[str, PowerRecord], outlook: Outlook) -> bool:
        record = records.get(here.host)
        if record is None:
            return not here.draining
        if record.state is PowerState.DRAINING:  # new work undoes a drain that nobody ordered
            return bar(record, outlook.at, self._declared[here.host]) is None
        return record.state is PowerState.ONLINE

    def facts(self, host: str, record: PowerRecord, outlook: Outlook, *, called: bool, told: Told) -> Facts:
        """What the law may know of `host` now."""
        facts = glance(host, outlook)
        case = Case(record, facts, self._declared[host])
        idle = facts.steady and facts.heart is not None and empty(case) and not (facts.queued or used(case))
        idle_s = self._watch.seconds((host, "idle"), idle)
        called_s = self._watch.seconds((host, "called"), called)
        call = record.call and (record.call.id, record.call.answer is None)
        return replace(
            facts,
            tells=told.tells,
            provider=told.word,
            called=called,
            called_s=called_s if called else 0.0,
            idle_s=idle_s if idle else 0.0,
            in_state_s=self._in_state_s(host, record),
            call_s=self._watch.seconds((host, "call"), call),
        )

    def _in_state_s(self, host: str, record: PowerRecord) -> float:
        return self._watch.seconds((host, "state"), state_key(record))


def glance(host: str, outlook: Outlook) -> Facts:
    """The facts that need no watching: who beats, what waits, what is held."""
    here, pools = outlook.present.get(host), outlook.offered.get(host)
    return Facts(
        at=outlook.at,
        steady=outlook.steady,
        heart=None if here is None else _heart(here),
        queued=bool(outlook.waiting if pools is None else outlook.waiting & pools),
        held=outlook.held.get(host, 0),
    )


def _heart(here: Presence) -> Heart:
    busy = len(here.running) + here.busy.unsaved
    return Heart(here.incarnation, here.draining, busy, here.busy.used_by)
