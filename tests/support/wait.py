"""Wait for a condition that no event announces, with a deadline: what another process does raises no event here."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

T = TypeVar("T")

WAIT_TIMEOUT_S = 30.0
POLL_INTERVAL_S = 0.02


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
    name = getattr(condition, "__qualname__", repr(condition))
    raise TimeoutError(f"{name} does not hold after {timeout_s:g} s")
