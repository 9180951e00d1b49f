"""What is known of one host at one moment: all that the law may judge by.

Durations are seconds that this edge has itself watched, on a clock that no calendar moves: a clock that jumps, a
suspended edge or another edge's clock must not make a call look old or a host look idle. After a restart they begin
anew, which at worst leaves the light on a little longer.
"""

from collections.abc import Callable, Hashable
from datetime import datetime

from msgspec import Struct

from schemas.power import Provider, UsedBy


class Heart(Struct, frozen=True):
    """A host's heartbeat. `busy` counts what runs, uploads, is not acknowledged yet, or may hold unsaved outputs.

    `used_by`: who but us uses the machine.
    """

    incarnation: str
    draining: bool = False
    busy: int = 0
    used_by: frozenset[UsedBy] = frozenset()


class Facts(Struct, frozen=True, kw_only=True):
    """One look at a host.

    `steady`: the observer has been connected long enough for absence to count, and has read all jobs. `tells`: the
    switch can say whether the host is off. `called`: this is the host to wake for work that nobody serves.
    `queued`: work waits in a pool that it offers. `held`: records running or cancelling there.
    """

    at: datetime
    steady: bool = True
    heart: Heart | None = None
    tells: bool = True
    provider: Provider = Provider.UNKNOWN
    called: bool = False
    queued: bool = False
    held: int = 0
    called_s: float = 0.0
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
