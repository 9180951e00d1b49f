"""The law of a host's power: for every state the rows that may be taken, the first that holds counts.

Two truths are kept apart: online only by the runner's heartbeat, off only by the switch's word (or, where it has none,
by silence under the gone rule).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from edge.power import cases as c
from edge.power.cases import both, unless
from schemas.power import Outcome, Verb
from schemas.power import PowerState as S


class Row(NamedTuple):
    """When it holds, the host goes to `to`; with an `order`, by a call of its switch.

    `to` None: nothing is to be done, whatever stands below. `why` is what history and people are told.
    """

    when: c.Question
    to: S | None
    why: str = ""
    order: Verb | None = None


START, STOP = Verb.START, Verb.STOP
ASKED = both(c.called, unless(c.barred))
WORK = both(c.needed, unless(c.barred))
IN_USE = both(c.beats, c.either(WORK, unless(c.quitting)))
DONE, NO_CAPACITY, FAILED = c.done, c.answered(Outcome.NO_CAPACITY), c.answered(Outcome.FAILED)
ANSWERS = "its runner answers"
SILENT = "its runner fell silent"
IS_OFF = "it is off"
BEFORE = "it is needed again"
UNWANTED = "nobody waits for it any more"
CAUSE = "{cause}"
BAR = "{bar}"

TABLE: Mapping[S, Sequence[Row]] = {
    S.OFF: (
        Row(c.beats, S.ONLINE, ANSWERS),
        Row(both(c.called, c.barred), S.BLOCKED, BAR),
        Row(c.called, S.WAKING, CAUSE, START),
    ),
    S.WAKING: (
        Row(c.beats, S.ONLINE, ANSWERS),
        Row(both(c.lost, ASKED), S.WAKING, order=START),
        Row(c.open_call, None),
        Row(NO_CAPACITY, S.BLOCKED, "no capacity: {said}"),
        Row(both(FAILED, c.exhausted_attempts), S.FAULT, "cannot be switched on: {said}"),
        Row(both(FAILED, c.barred), S.BLOCKED, BAR),
        Row(both(FAILED, unless(c.called), c.dark), S.OFF, UNWANTED),
        Row(both(FAILED, c.rested, ASKED), S.WAKING, order=START),
        Row(both(c.uncalled, c.dark), S.OFF, IS_OFF),
        Row(both(c.boot_over, c.cycled), S.FAULT, "its runner did not come, also after a power cycle"),
        Row(c.boot_over, S.STOPPING, "its runner did not come in time: one power cycle", STOP),
    ),
    S.BLOCKED: (
        Row(c.beats, S.ONLINE, ANSWERS),
        Row(both(c.lost, ASKED), S.BLOCKED, order=START),
        Row(c.open_call, None),
        Row(DONE, S.WAKING, "there is capacity again"),
        Row(c.lit, S.WAKING, "its switch says that it is on"),
        Row(both(unless(c.called), c.dark), S.OFF, UNWANTED),
        Row(both(ASKED, c.uncalled), S.WAKING, CAUSE, START),
        Row(both(ASKED, c.rested), S.BLOCKED, order=START),
    ),
    S.ONLINE: (
        Row(c.dark, S.OFF, "it went off by itself"),
        Row(c.gone, S.WAKING, SILENT),
        Row(both(c.beats, c.barred), S.DRAINING, BAR),
        Row(both(c.beats, c.idle), S.DRAINING, "nothing to do"),
    ),
    S.DRAINING: (
        Row(c.told_off, S.OFF, "it went off by itself"),
        Row(both(c.beats, WORK), S.ONLINE, BEFORE),
        Row(both(c.gone, WORK), S.WAKING, SILENT),
        Row(both(c.gone, c.empty), S.STOPPING, "it fell silent while it drained", STOP),
        Row(c.drained, S.STOPPING, "it is drained", STOP),
    ),
    S.STOPPING: (
        Row(both(c.lost, unless(IN_USE)), S.STOPPING, order=STOP),
        Row(c.open_call, None),
        Row(c.told_off, S.OFF, IS_OFF),
        Row(both(unless(DONE), c.beats, WORK), S.ONLINE, BEFORE),
        Row(both(unless(DONE), c.beats, unless(c.quitting)), S.DRAINING, "its runner has not let go"),
        Row(both(unless(DONE), c.exhausted_attempts), S.FAULT, "cannot be switched off: {said}"),
        Row(both(unless(DONE), c.rested), S.STOPPING, order=STOP),
        Row(unless(DONE), None),
        Row(c.dark, S.OFF, IS_OFF),
        Row(c.stop_over, S.FAULT, "it does not go off"),
    ),
    S.FAULT: (
        Row(both(c.beats, c.reborn), S.ONLINE, ANSWERS),
        Row(both(c.beats, WORK), S.ONLINE, "work came, and its runner answers"),
        Row(both(c.beats, c.pardoned), S.ONLINE, "its owner has looked"),
        Row(both(c.pardoned, ASKED), S.WAKING, CAUSE, START),
        Row(both(c.pardoned, c.dark), S.OFF, "its owner has looked"),
    ),
}
