"""The power of a host: its record in POWER, and the port of the drivers that switch it.

The host's runner reads its own row as its orders: `draining` and `stopping` mean to take no new work; `stopping` with
`own_poweroff` means to power the machine off when it is empty. It reads the row again and again, so an order cannot be
lost.

`lamplighter.power` is the public name of the port, for drivers in packages of their own. Calls are idempotent: starting
a host that is on or starting succeeds, and so does stopping one that is off. A call may be repeated, also by another
edge, after its result was lost. The port has no call that deletes a machine, and must not get one. The caller sets the
timeout.

PowerCallFailed   the call failed: repeat it a few times
  NoCapacity      the provider has no free machine: repeat it while jobs wait

The last part of this module is the reply of a webhook and of a relay, which two of the drivers read.
"""

from collections.abc import Collection, Hashable, Mapping
from enum import StrEnum
from typing import Literal, Protocol, runtime_checkable

import msgspec
from msgspec import Struct, field

from schemas.job import Moment, Token

HISTORY_LIMIT = 64  # state changes that a record keeps
WAKE_DURATION_LIMIT = 32  # measured wakes that a record keeps, for the median
ON_INTERVAL_LIMIT = 16  # ended intervals that a record keeps until they are in USAGE

ForeignUse = Literal["users", "programs"]  # use of a host by others: people logged in, other programs on its GPUs


class PowerState(StrEnum):
    """The power state of a host. `edge.power.state_machine` says what moves it."""

    OFF = "off"
    WAKING = "waking"
    ONLINE = "online"
    DRAINING = "draining"
    STOPPING = "stopping"
    BLOCKED = "blocked"
    FAULT = "fault"


class ReportedPower(StrEnum):
    """The power as a driver reports it. UNKNOWN: it was not asked, did not answer, or cannot tell.

    PENDING: a cluster has accepted the start and has no capacity for it yet. A stop call withdraws it.
    """

    OFF = "off"
    PENDING = "pending"
    STARTING = "starting"
    ON = "on"
    STOPPING = "stopping"
    ERROR = "error"
    UNKNOWN = "unknown"


class PowerVerb(StrEnum):
    """The calls that switch a host. There is none to delete a machine."""

    START = "start"
    STOP = "stop"


class PowerCallOutcome(StrEnum):
    """The outcome of a call. NO_CAPACITY is not a failure: nothing is broken, and a later call may succeed."""

    DONE = "done"
    NO_CAPACITY = "no_capacity"
    FAILED = "failed"


class PowerCallResult(Struct, frozen=True):
    """The result of a call; `why` is for people."""

    outcome: PowerCallOutcome
    why: str = ""


class PowerCall(Struct, frozen=True):
    """The call in flight, or the last one. `retry_after_s`: seconds from its result to the next call."""

    id: Token
    verb: PowerVerb
    at: Moment
    result: PowerCallResult | None = field(default=None, name="answer")
    retry_after_s: float = field(default=0.0, name="wait_s")


class PowerOverride(Struct, frozen=True):
    """An operator's override; without `until` it holds until it is removed."""

    want: Literal["on", "off"]
    until: Moment | None = None


class PowerChange(Struct, frozen=True):
    """One row of a host's power history."""

    at: Moment
    state: PowerState
    why: str


class DailyOnTime(Struct, frozen=True):
    """Seconds with power on one day (ISO date in the host's time zone), in intervals that have ended."""

    day: str = ""
    on_s: float = 0.0


class OnInterval(Struct, frozen=True):
    """An interval with power that has ended, and why it began."""

    since: Moment
    until: Moment
    why: str


class PowerRecord(Struct, frozen=True, kw_only=True):
    """The row of one host in POWER.

    `failed_calls`: failed calls of one kind in a row. `failed_boots`: boots that timed out since the host was last
    online. `on_since`: when it last got power, None while it has none; `on_reason`: why. `on_intervals`: the last
    intervals with power. `wake_durations_s`: seconds from a start call to the first heartbeat. `fault_acknowledged`:
    the owner has acknowledged the fault.
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


class PowerCallFailed(Exception):
    """The call failed. The message says what failed, why, and what to do, in one line."""


class NoCapacity(PowerCallFailed):
    """The provider has no free machine at the moment."""


class PowerDriver(Protocol):
    """A power driver: powers one host on and off, and reports its state."""

    @property
    def can_report_state(self) -> bool:
        """Return whether `state` can report OFF. Otherwise a host without heartbeats is treated as off."""
        ...

    async def start(self, call_id: str) -> None:
        """Power the host on; return when the order was accepted. Raises PowerCallFailed, NoCapacity."""
        ...

    async def stop(self, call_id: str) -> None:
        """Power the host off; return when the order was accepted. Raises PowerCallFailed."""
        ...

    async def state(self) -> ReportedPower:
        """Return the current power state. Raises PowerCallFailed if it is not available."""
        ...


@runtime_checkable
class ClusterPowerDriver(PowerDriver, Protocol):
    """A power driver that can report the states of all hosts of its cluster in one call."""

    @property
    def cluster(self) -> Hashable | None:
        """Return a value that is equal for the hosts that one call of `states` can report; None if it cannot."""
        ...

    async def states(self, hosts: Collection[str]) -> Mapping[str, ReportedPower]:
        """Return the current power states of these hosts of the cluster; one that is left out is UNKNOWN.

        Raises PowerCallFailed if none is available.
        """
        ...


class PowerDriverReply(Struct, frozen=True):
    """The reply of a webhook or a relay: `{"state": "off|starting|…", "no_capacity": false}`. Both are optional."""

    state: ReportedPower = ReportedPower.UNKNOWN
    no_capacity: bool = False


def parse_reply(body: bytes) -> PowerDriverReply:
    """Decode a reply; an empty body is an empty reply. Raises PowerCallFailed, NoCapacity."""
    try:
        reply = msgspec.json.decode(body, type=PowerDriverReply) if body.strip() else PowerDriverReply()
    except msgspec.DecodeError as error:
        raise PowerCallFailed(f'the reply is not {{"state": …}}: {error}') from error
    return require_capacity(reply)


def require_capacity(reply: PowerDriverReply) -> PowerDriverReply:
    """Return `reply`. Raises NoCapacity if it reports this."""
    if reply.no_capacity:
        raise NoCapacity("the power driver reports no capacity")
    return reply
