"""Receivers as this edge knows them: how much is under way to each, and which are dead at the moment.

A dead or slow receiver must not hold the places that others need, so what is for it goes back to the broker.
"""

from collections.abc import Callable

from msgspec import Struct

DEAD_AFTER = 5  # tries in a row without an answer
REST_S = 5.0
REST_LONGEST_S = 300.0
TAKES_S = 0.05  # a try, until one was measured
_LEARNING = 0.3  # how much of what is known each try replaces


class _Receiver(Struct):
    active: int = 0
    unanswered: int = 0
    rests_until: float = 0.0
    put_off: int = 0
    takes_s: float = TAKES_S


class Receivers:
    """`each`: tries at a time to one receiver. `clock` in seconds, `dice` from 0 to 1."""

    def __init__(self, each: int, clock: Callable[[], float], dice: Callable[[], float]) -> None:
        self._each = each
        self._clock = clock
        self._dice = dice
        self._known: dict[str, _Receiver] = {}

    def enter(self, name: str) -> float | None:
        """Begin a try: None, or the seconds after which to ask again. A begun try must `leave`."""
        one = self._known.setdefault(name, _Receiver())
        left = one.rests_until - self._clock()
        room = 1 if one.unanswered >= DEAD_AFTER else self._each  # who was dead is probed by one
        if left <= 0 and one.active < room:
            one.active += 1
            one.put_off = 0
            return None
        # Until about its turn by what a try takes here, so that neither a quick receiver waits nor putting off what a
        # slow one cannot take becomes the work.
        one.put_off += 1
        turn = min(REST_LONGEST_S, one.put_off * one.takes_s / room)
        return max(left, one.takes_s) + turn * (1 + self._dice()) / 2

    def leave(self, name: str, *, answered: bool, took_s: float) -> None:
        """The try has ended; `answered`: whatever it said."""
        one = self._known[name]
        one.active -= 1
        one.takes_s += _LEARNING * (took_s - one.takes_s)
        one.unanswered = 0 if answered else one.unanswered + 1
        if one.unanswered >= DEAD_AFTER:
            rest = min(REST_LONGEST_S, REST_S * 2 ** min(one.unanswered - DEAD_AFTER, 10))
            one.rests_until = self._clock() + rest
        elif not one.active and not one.unanswered:
            del self._known[name]
