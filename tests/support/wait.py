"""Wait for a condition that no event announces, with a deadline: what another process does raises no event here."""

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from bus.interface import BusError

T = TypeVar("T")

WAIT_TIMEOUT_S = 30.0
POLL_INTERVAL_S = 0.02
BUS_TIMEOUT_S = 60.0
RETRY_DELAY_S = 0.05


async def wait_for(
    condition: Callable[[], Awaitable[T | None]],
    *,
    timeout_s: float = WAIT_TIMEOUT_S,
    interval_s: float = POLL_INTERVAL_S,
) -> T:
    """Return the first true value of `condition`. Raises TimeoutError, which names the condition, after `timeout_s`."""
    with anyio.move_on_after(timeout_s):
        while True:
            if value := await condition():
                return value
            await anyio.sleep(interval_s)
    raise _timeout_error(condition, timeout_s)


def wait_for_sync(
    condition: Callable[[], T | None], *, timeout_s: float = WAIT_TIMEOUT_S, interval_s: float = POLL_INTERVAL_S
) -> T:
    """Do the same in a test without an event loop."""
    ends = time.monotonic() + timeout_s
    while time.monotonic() < ends:
        if value := condition():
            return value
        time.sleep(interval_s)
    raise _timeout_error(condition, timeout_s)


async def retry_bus_call(call: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `call`, repeated while the broker fails.

    It may have been killed, and while it reloads the accounts of joined hosts a call may get no answer. Raises the last
    BusError after BUS_TIMEOUT_S.
    """
    deadline = time.monotonic() + BUS_TIMEOUT_S
    while True:
        try:
            return await call()
        except BusError:
            if time.monotonic() > deadline:
                raise
        await anyio.sleep(RETRY_DELAY_S)


def _timeout_error(condition: Callable[[], object], timeout_s: float) -> TimeoutError:
    name = getattr(condition, "__qualname__", repr(condition))
    return TimeoutError(f"{name} does not hold after {timeout_s:g} s")
