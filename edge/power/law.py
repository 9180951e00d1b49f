"""Walks the table: what becomes of a host's record by the facts, by the answer to a call, by the owner's wish. Pure.

Writing the record is the caller's compare-and-set, and only then is the call made: of several edges one wins.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from msgspec.structs import replace

from edge.power import cases
from edge.power.cases import Case
from edge.power.facts import Facts
from edge.power.ledger import settled, spans
from edge.power.tables import IN_USE, TABLE, Row
from schemas.power import HISTORY, WAKES, Answer, Call, Hold, Outcome, PowerChange, PowerRecord, PowerState, Provider
from schemas.switch import Switched

BACKOFF_FIRST_S = 15.0
BACKOFF_MAX_S = 600.0
WAKE_MAX_S = 3600.0  # a longer one was no boot: the clock jumped, or nobody looked


def unseen(at: datetime) -> PowerRecord:
    """The first record of a declared host."""
    return PowerRecord(state=PowerState.OFF, since=at, why="it was not seen yet")


def advance(record: PowerRecord, facts: Facts, rules: Switched, call_id: str) -> PowerRecord | None:
    """The next record, None when nothing changes. If its call has the id `call_id`, the writer makes that call."""
    case = Case(record, facts, rules)
    row = next((row for row in TABLE[record.state] if row.when(case)), None)
    if row is None or row.to is None or (row.order and cases.open_call(case)):
        return None
    changes = _call(case, row, call_id)
    if row.to is not record.state:
        changes = _entered(case, row) | ENTER[row.to](case) | changes
    return replace(record, **changes)


def _call(case: Case, row: Row, call_id: str) -> dict[str, Any]:
    return {"call": Call(call_id, row.order, case.facts.at)} if row.order else {}


def _entered(case: Case, row: Row) -> dict[str, Any]:
    record, at = case.record, case.facts.at
    bar = cases.bar(record, at, case.rules) or ""
    why = row.why.format(bar=bar, cause=cases.cause(case), said=cases.said(case))
    change = PowerChange(at, row.to or record.state, why)
    return {
        "state": change.state,
        "since": at,
        "why": why,
        "pardoned": False,
        "hold": cases.held_by(record, at),
        "history": (*record.history, change)[-HISTORY:],
    }


def _open(case: Case) -> Call | None:
    """The call, while it may still be on its way: nobody may forget that."""
    return case.record.call if cases.open_call(case) else None


def _put_out(case: Case) -> dict[str, Any]:
    """The account of the time with power; a start that was not done gave none."""
    never = case.record.state is PowerState.WAKING and cases.is_start(case) and not cases.done(case)
    record, at = replace(case.record, lit_since=None) if never else case.record, case.facts.at
    return {"spend": settled(record, at, case.rules), "spans": spans(record, at), "lit_since": None}


def _off(case: Case) -> dict[str, Any]:
    return {"call": _open(case), "attempts": 0, "own_poweroff": False, **_put_out(case)}


def _lit(case: Case) -> dict[str, Any]:
    """It has power from now on, if it had none."""
    record, at = case.record, case.facts.at
    return {} if record.lit_since else {"lit_since": at, "lit_why": cases.cause(case)}


def _waking(case: Case) -> dict[str, Any]:
    silent = case.record.state in {PowerState.ONLINE, PowerState.DRAINING}
    forgotten = {"call": _open(case)} if silent else {}
    return _lit(case) | forgotten


def _online(case: Case) -> dict[str, Any]:
    record, heart = case.record, case.facts.heart
    return _lit(case) | {
        "attempts": 0,
        "boots": 0,
        "incarnation": heart.incarnation if heart else None,
        "wakes": (*record.wakes, *_wake(case))[-WAKES:],
    }


def _wake(case: Case) -> tuple[float, ...]:
    """Seconds from the start call to this heartbeat, where there was one."""
    record = case.record
    if record.call is None or not cases.is_start(case) or record.state is not PowerState.WAKING:
        return ()
    took = (case.facts.at - record.call.at).total_seconds()
    return (took,) if 0 < took <= WAKE_MAX_S else ()


def _blocked(case: Case) -> dict[str, Any]:
    return _put_out(case)


def _draining(_: Case) -> dict[str, Any]:
    return {}


def _stopping(case: Case) -> dict[str, Any]:
    cycle = case.record.state is PowerState.WAKING
    return {"attempts": 0, "boots": case.record.boots + cycle, "own_poweroff": case.rules.own_poweroff}


def _fault(case: Case) -> dict[str, Any]:
    out = _put_out(case) if case.facts.provider is Provider.OFF else {}
    return {"call": _open(case), "attempts": 0, "boots": 0, **out}


ENTER: Mapping[PowerState, Callable[[Case], dict[str, Any]]] = {
    PowerState.OFF: _off,
    PowerState.WAKING: _waking,
    PowerState.ONLINE: _online,
    PowerState.DRAINING: _draining,
    PowerState.STOPPING: _stopping,
    PowerState.BLOCKED: _blocked,
    PowerState.FAULT: _fault,
}


def withheld(record: PowerRecord, facts: Facts, rules: Switched) -> str | None:
    """Why a stop that was decided must not be made after all, judged by facts gathered just before; None: make it.

    Between the look and the write a runner may have come up, or work may have come in.
    """
    case = Case(record, facts, rules)
    if IN_USE(case):
        return "its runner answers and is in use"
    return None if cases.empty(case) else "a job is recorded as running there"


def answered(record: PowerRecord, call_id: str, answer: Answer, jitter: float) -> PowerRecord | None:
    """The record with the answer to its call; None when that call is not the one it waits for. `jitter` in [0, 1)."""
    call = record.call
    if call is None or call.id != call_id or call.answer is not None:
        return None
    if answer.outcome is Outcome.DONE:
        return replace(record, call=replace(call, answer=answer))
    wait_s = backoff_s(record.attempts, jitter)
    return replace(record, call=replace(call, answer=answer, wait_s=wait_s), attempts=record.attempts + 1)


def backoff_s(attempts: int, jitter: float) -> float:
    """Seconds to rest after `attempts` earlier ones: doubling from 15 s to 10 min, half to one and a half of that."""
    return min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(attempts, 20)) * (0.5 + jitter)


def wished(record: PowerRecord, hold: Hold | None) -> PowerRecord:
    """The record with the owner's wish (None: none); it also pardons a fault, because the owner has looked."""
    return replace(record, hold=hold, pardoned=record.state is PowerState.FAULT)
