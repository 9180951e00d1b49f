"""The port to the state of the broker and of the connection, and the clock that measures how long the connection is up.

A host counts as gone only for an observer that was connected for long enough without a break. `UptimeClock` does not
count a break that the observer could not have noticed, such as a suspend. The errors are in `bus.interface`.
"""

import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import NamedTuple, Protocol

CLOCK_JUMP_LIMIT_S = 2.0


class ClockReading(NamedTuple):
    """One moment on three clocks, in seconds: one that stops in a suspend, one that does not, and wall time."""

    monotonic_s: float
    boottime_s: float
    wall_s: float


def read_clocks() -> ClockReading:
    """Read the clocks. Only Linux has a clock that counts a suspend; elsewhere the monotonic one stands for both."""
    suspending = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return ClockReading(time.monotonic(), time.clock_gettime(suspending), time.time())


class UptimeClock:
    """Count seconds.

    Start again after `start`, a suspend, or a clock that jumped by more than 2 s between two calls.
    """

    def __init__(self, clocks: Callable[[], ClockReading] = read_clocks) -> None:
        self._clocks = clocks
        self._since: float | None = None
        self._last = clocks()

    def start(self) -> None:
        """Count from now on: the connection is up."""
        self._last = self._clocks()
        self._since = self._last.monotonic_s

    def stop(self) -> None:
        """Stop counting: the connection is down."""
        self._since = None

    def uptime_s(self) -> float:
        """Return the seconds so far; 0 while the connection is down."""
        now, last = self._clocks(), self._last
        self._last = now
        if self._since is None:
            return 0.0
        ran = now.monotonic_s - last.monotonic_s
        if (
            abs(now.boottime_s - last.boottime_s - ran) > CLOCK_JUMP_LIMIT_S
            or abs(now.wall_s - last.wall_s - ran) > CLOCK_JUMP_LIMIT_S
        ):
            self._since = now.monotonic_s
        return now.monotonic_s - self._since


class BrokerStatus(NamedTuple):
    """The state of the broker. `used_share` is the share of the store in use, 0 to 1. `is_durable` None: unknown.

    `write_failed`: the broker's disk did not accept a write, and the broker stores nothing until it is restarted.
    `degraded`: faults of single servers while the cluster works, and what to do about each, one line each.
    `used_bytes`, `limit_bytes`: of the store; of a cluster, those of its fullest server. None: no limit.
    """

    used_share: float
    is_durable: bool | None
    version: str
    write_failed: bool = False
    degraded: tuple[str, ...] = ()
    used_bytes: int = 0
    limit_bytes: int | None = None


class BrokerBacklog(NamedTuple):
    """The work that waits in the broker. `broker_time`: its clock, None if it does not tell.

    `pointers`: messages of JOBS, also those that a runner has. `unchecked_states`: changes of STATE that no edge has
    checked for a webhook. `deliveries`: webhook deliveries that were not acked; the oldest has waited for
    `oldest_delivery_s`, 0 without one.
    """

    pointers: int
    unchecked_states: int
    deliveries: int
    oldest_delivery_s: float
    broker_time: datetime | None = None


class BrokerHealth(Protocol):
    """The state of the connection and of the broker."""

    async def status(self) -> BrokerStatus:
        """Ask the broker for its state. Raises BrokerUnreachable."""
        ...

    async def backlog(self) -> BrokerBacklog:
        """Ask the broker what waits in it. Only the edge has the right to do so. Raises BusError."""
        ...

    @property
    def is_connected(self) -> bool:
        """Whether the connection is up and set up."""
        ...

    @property
    def fault(self) -> str:
        """Why the broker refuses this user, and what to do; empty when it does not, and while it is away."""
        ...

    def uptime_s(self) -> float:
        """Return the seconds since the connection came up, without a break, a suspend or a clock jump.

        A host counts as gone only for an observer that was connected for long enough.
        """
        ...

    def reconnects(self) -> AsyncIterator[None]:
        """Yield once after each reconnect, when the streams exist again."""
        ...
