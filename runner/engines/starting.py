"""Starting in a thread without losing what was started."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


async def started(pool: ThreadPoolExecutor, start: Callable[[], str], undo: Callable[[str], None]) -> str:
    """`start()` in a thread of `pool`; the handle it returns.

    A thread cannot be cancelled: if the caller is, what it starts all the same is undone there, as nobody will ever
    know its handle.
    """

    def forget(running: "Future[str]") -> None:
        if not running.cancelled() and running.exception() is None:
            undo(running.result())

    running = pool.submit(start)
    try:
        return await asyncio.wrap_future(running)
    except asyncio.CancelledError:
        running.add_done_callback(forget)
        raise
