"""A host's power as POWER keeps it: where it stands and why, the call that is out, the owner's wish, what it has cost.

The record is also the order to the host's runner, which reads its own row: `draining` and `stopping` mean "take nothing
new"; `stopping` with `own_poweroff` means "you are empty: switch your machine off". Read again and again, an order
cannot be lost.
"""

from enum import StrEnum
from typing import Literal

from msgspec import Struct, field

from schemas.ids import Token
from schemas.job import Moment

HISTORY_LIMIT = 64  # changes of state that a record keeps
WAKE_DURATION_LIMIT = 32  # measured wakes that a record keeps, for the median
ON_INTERVAL_LIMIT = 16  # ended spans with power that a record keeps, for the usage report to take over

ForeignUse = Literal["users", "programs"]  # who but us may use a host: people logged in, other programs on its cards


class PowerState(StrEnum):
    """Where a host stands. Who moves it is in `edge.power.transitions`."""

    OFF = "off"
    WAKING = "waking"
    ONLINE = "online"
    DRAINING = "draining"
    STOPPING = "stopping"
    BLOCKED = "blocked"
    FAULT = "fault"


class ReportedPower(StrEnum):
    """What a host's switch says of it. UNKNOWN: it was not asked, did not answer, or cannot tell."""

    OFF = "off"
    STARTING = "starting"
    ON = "on"
    STOPPING = "stopping"
    ERROR = "error"
    UNKNOWN = "unknown"


class PowerVerb(StrEnum):
    """What a switch can be told. There is no third: a machine is never deleted."""

    START = "start"
    STOP = "stop"


class PowerCallOutcome(StrEnum):
    """How a call ended. No capacity is an answer of its own: nothing is broken, and later it may work."""

    DONE = "done"
    NO_CAPACITY = "no_capacity"
    FAILED = "failed"


class PowerCallResult(Struct, frozen=True):
    """What came of a call; `why` is for people."""

    outcome: PowerCallOutcome
    why: str = ""


class PowerCall(Struct, frozen=True):
    """The one call that is out, or was last. `wait_s`: how long to rest before it is made again, once answered."""

    id: Token
    verb: PowerVerb
    at: Moment
    result: PowerCallResult | None = field(default=None, name="answer")
    retry_after_s: float = field(default=0.0, name="wait_s")


class PowerOverride(Struct, frozen=True):
    """An owner's wish; without `until` it stands until it is taken back."""

    want: Literal["on", "off"]
    until: Moment | None = None


class PowerChange(Struct, frozen=True):
    """One row of a host's power history."""

    at: Moment
    state: PowerState
    why: str


class DailyOnTime(Struct, frozen=True):
    """Seconds with power on one day (ISO date, in the host's time zone), intervals that have ended."""

    day: str = ""
    on_s: float = 0.0


class OnInterval(Struct, frozen=True):
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
    call: PowerCall | None = None
    failed_calls: int = field(default=0, name="attempts")
    failed_boots: int = field(default=0, name="boots")
    override: PowerOverride | None = field(default=None, name="hold")
    fault_acknowledged: bool = field(default=False, name="pardoned")
    runner_powers_off: bool = field(default=False, name="own_poweroff")
    incarnation: str | None = None
    on_since: Moment | None = field(default=None, name="lit_since")
    on_reason: str = field(default="", name="lit_why")
    on_intervals: tuple[OnInterval, ...] = field(default=(), name="spans")
    daily_on_time: DailyOnTime = field(default=DailyOnTime(), name="spend")
    wake_durations_s: tuple[float, ...] = field(default=(), name="wakes")
    history: tuple[PowerChange, ...] = ()
