"""Lengthen the timeout of the vendor's face detection. The vendor waits 10 s, then fails with an empty text.

Source: tracebacks that users published (TransDhTask.work, multiprocessing/queues.py get, _queue.Empty). On a cold or
busy host the first detection took 8.4 s and more.
"""

from __future__ import annotations

import multiprocessing.queues
from typing import Any

VENDOR_TIMEOUT_S = 10  # the only timeout that is lengthened: shorter ones are polls, longer ones are watchdogs
LONG_TIMEOUT_S = 120.0  # below WorkerSettings.stall_s, so that this timeout fires before the watchdog

seen_timeouts: set[float] = set()  # every timeout that the vendor used; the selfcheck reports them


def lengthen_queue_timeout(queue: type[Any] = multiprocessing.queues.Queue) -> None:
    """Make `get` of the class `queue` wait LONG_TIMEOUT_S instead of VENDOR_TIMEOUT_S, in this process.

    Spawned children import the class again and keep the vendor's timeouts. A second call changes nothing.
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
