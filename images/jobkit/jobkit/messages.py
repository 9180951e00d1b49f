"""Messages to the runner: one JSON object on each line of the stdout that the container was started with."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

PROGRESS_INTERVAL_S = 0.1


def claim_stdout() -> int:
    """Keep stdout for messages, redirect all other output to stderr, and return the descriptor for messages.

    A library that prints an incomplete line, as a progress bar does, would otherwise damage the message after it.
    """
    sys.stdout.flush()
    descriptor = os.dup(1)
    os.dup2(2, 1)
    return descriptor


class MessageWriter:
    """A writer of messages. It may be used from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def write(self, kind: str, **fields: Any) -> None:
        """Write one message. Fields with the value None are left out."""
        message = {"type": kind, **{name: value for name, value in fields.items() if value is not None}}
        data = json.dumps(message, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"
        with self._lock:
            while data:
                data = data[os.write(self._descriptor, data) :]


class ProgressThrottle:
    """Write progress at most every PROGRESS_INTERVAL_S, and the latest pending progress when the interval ends."""

    def __init__(self, write: Callable[..., None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._lock = threading.Lock()
        self._next = 0.0  # time of the earliest next write
        self._pending: dict[str, Any] | None = None
        self._timer: threading.Timer | None = None

    def put(self, **fields: Any) -> None:
        """Write the progress now, or at the end of the interval."""
        with self._lock:
            self._pending = fields
            wait = self._next - self._clock()
            if wait <= 0:
                self._emit()
            elif self._timer is None:
                self._timer = threading.Timer(wait, self.flush)
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> None:
        """Write the pending progress, if any, without waiting for the interval to end."""
        with self._lock:
            self._emit()

    def _emit(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pending is not None:
            fields, self._pending = self._pending, None
            self._next = self._clock() + PROGRESS_INTERVAL_S
            self._write("progress", **fields)
