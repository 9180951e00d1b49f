"""Saying things to the runner: one JSON object a line, on the stdout the container was started with."""

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
    """Keep stdout for messages and send what anybody else prints there to stderr; the descriptor to write to.

    A library that prints half a line (a progress bar, a C warning) would otherwise spoil the message behind it.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    return kept


class MessageWriter:
    """Writes messages; safe from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def write(self, kind: str, **fields: Any) -> None:
        """One message. Fields that are None are left out."""
        said = {"type": kind, **{name: value for name, value in fields.items() if value is not None}}
        data = json.dumps(said, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"
        with self._lock:
            while data:
                data = data[os.write(self._descriptor, data) :]


class ProgressThrottle:
    """Progress at most every PROGRESS_EVERY_S seconds; what is held back follows then, so the last always arrives."""

    def __init__(self, say: Callable[..., None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = say
        self._clock = clock
        self._lock = threading.Lock()
        self._next = 0.0  # no sooner than this
        self._pending: dict[str, Any] | None = None
        self._timer: threading.Timer | None = None

    def put(self, **fields: Any) -> None:
        """Say it now or in a moment."""
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
        """Say what was held back."""
        with self._lock:
            self._emit()

    def _emit(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pending is not None:
            held, self._pending = self._pending, None
            self._next = self._clock() + PROGRESS_INTERVAL_S
            self._write("progress", **held)
