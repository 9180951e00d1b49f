"""A host's power as POWER keeps it: where it stands and why, the call that is out, the owner's wish, what it has cost.

The record is also the order to the host's runner, which reads its own row: `draining` and `stopping` mean "take nothing
new"; `stopping` with `own_poweroff` means "you are empty: switch your machine off". Read again and again, an order
cannot be lost.
"""

from enum import StrEnum
from typing import Literal

from msgspec import Struct

from schemas.job import Moment
from schemas.words import Token

HISTORY = 64  # changes of state that a record keeps
WAKES = 32  # measured wakes that a record keeps, for the median
SPANS = 16  # ended spans with power that a record keeps, for the usage report to take over

UsedBy = Literal["users", "programs"]  # who but us may use a host: people logged in, other programs on its cards


class PowerState(StrEnum):
    """Where a host stands. Who moves it is in `edge.power.tables`."""

    OFF = "off"
    WAKING = "waking"
    ONLINE = "online"
    DRAINING = "draining"
    STOPPING = "stopping"
    BLOCKED = "blocked"
    FAULT = "fault"


class Provider(StrEnum):
    """What a host's switch says of it. UNKNOWN: it was not asked, did not answer, or cannot tell."""

    OFF = "off"
    STARTING = "starting"
    ON = "on"
    STOPPING = "stopping"
    ERROR = "error"
    UNKNOWN = "unknown"


class Verb(StrEnum):
    """What a switch can be told. There is no third: a machine is never deleted."""

    START = "start"
    STOP = "stop"


class Outcome(StrEnum):
    """How a call ended. No capacity is an answer of its own: nothing is broken, and later it may work."""

    DONE = "done"
    NO_CAPACITY = "no_capacity"
    FAILED = "failed"


class Answer(Struct, frozen=True):
    """What came of a call; `why` is for people."""

    outcome: Outcome
    why: str = ""


class Call(Struct, frozen=True):
    """The one call that is out, or was last. `wait_s`: how long to rest before it is made again, once answered."""

    id: Token
    verb: Verb
    at: Moment
    answer: Answer | None = None
    wait_s: float = 0.0


class Hold(Struct, frozen=True):
    """An owner's wish; without `until` it stands until it is taken back."""

    want: Literal["on", "off"]
    until: Moment | None = None


class PowerChange(Struct, frozen=True):
    """One row of a host's power history."""

    at: Moment
    state: PowerState
    why: str


class Spend(Struct, frozen=True):
    """Seconds with power on one day (ISO date, in the host's time zone), intervals that have ended."""

    day: str = ""
    on_s: float = 0.0


class Lit(Struct, frozen=True):
    """A span with power that has ended, and why it began."""

    since: Moment
    until: Moment
    why: str


class PowerRecord(Struct, frozen=True, kw_only=True):
    """One host in POWER.

    `attempts` counts calls of one kind that were not done, in a row; `boots` the boots that timed out since the host
    was last online. `lit_since` is when it last got power, None while it has none, `lit_why` what for; `spans` are
    the last times that it had power. `wakes` are seconds from the start call to the first heartbeat. `pardoned`: the
    owner has looked at the fault.
    """

    state: PowerState
    since: Moment
    why: str = ""
    call: Call | None = None
    attempts: int = 0
    boots: int = 0
    hold: Hold | None = None
    pardoned: bool = False
    own_poweroff: bool = False
    incarnation: str | None = None
    lit_since: Moment | None = None
    lit_why: str = ""
    spans: tuple[Lit, ...] = ()
    spend: Spend = Spend()
    wakes: tuple[float, ...] = ()
    history: tuple[PowerChange, ...] = ()
