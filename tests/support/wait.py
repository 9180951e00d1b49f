"""TODO: tests.support.wait."""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import anyio
import anyio.abc

WAIT_TIMEOUT_S = 20.0


async def wait_until(condition: Callable[[], Awaitable[bool]], *, within_s: float = WAIT_TIMEOUT_S) -> None:
    """Ask until `condition` holds; TimeoutError when it does not in time."""
    with anyio.fail_after(within_s):
        while not await condition():  # noqa: ASYNC110 - what another process does raises no event here
            await anyio.sleep(0.01)


async def wait_for(true: Callable[[], Coroutine[Any, Any, Any]], within_s: float = 30, every_s: float = 0.05) -> Any:
    """Wait for a condition that no event announces; its value."""
    with anyio.fail_after(within_s):
        while True:
            if value := await true():
                return value
            await anyio.sleep(every_s)
