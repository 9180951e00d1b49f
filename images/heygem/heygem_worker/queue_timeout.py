"""A longer timeout for the vendor's face detection, which the vendor gives 10 s before it fails with an empty text.

Source: tracebacks that its users published (TransDhTask.work, multiprocessing/queues.py get, _queue.Empty). On a cold
or busy host the first detection took 8.4 s and more.
"""

from __future__ import annotations

import multiprocessing.queues
from typing import Any

VENDOR_TIMEOUT_S = 10  # the one timeout that is stretched; shorter ones are polls, longer ones are watchdogs
LONG_TIMEOUT_S = 120.0  # below Settings.stall_s, so that the watchdog is not the first to end it

seen_timeouts: set[float] = set()  # every timeout that was asked for, for the selfcheck


def lengthen_queue_timeout(queue: type[Any] = multiprocessing.queues.Queue) -> None:
    """Make `get` of queues of that class wait LONG_TIMEOUT_S instead of VENDOR_TIMEOUT_S, in this process.

    Spawned children have classes of their own and keep the vendor's timeouts. A second call changes nothing.
    """
    original = queue.get
    if getattr(original, "stretched", False):
        return

    def get(self: Any, block: bool = True, timeout: float | None = None) -> Any:
        if timeout is not None:
            seen_timeouts.add(timeout)
        return original(self, block, LONG_TIMEOUT_S if timeout == VENDOR_TIMEOUT_S else timeout)

    get.stretched = True  # type: ignore[attr-defined]
    queue.get = get
