"""Run a call into the vendor's code in a thread, because the call may never return."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from heygem_worker import failures
from jobkit import JobError

T = TypeVar("T")


class VendorCall(Generic[T]):
    """A running call of `function`. Its thread starts immediately and calls `then` when the function has ended."""

    def __init__(self, function: Callable[[], T], then: Callable[[], None]) -> None:
        self._function = function
        self._then = then
        self._results: list[T] = []
        self._error: BaseException | None = None
        self.is_done = False
        threading.Thread(target=self._run, name="vendor", daemon=True).start()

    def _run(self) -> None:
        try:
            self._results.append(self._function())
        except BaseException as error:  # `result` raises it
            self._error = error
        self.is_done = True
        self._then()

    def result(self) -> T:
        """Return the result, once `is_done`. Raises the function's exception, as a JobError if its text is known."""
        if self._error is None:
            return self._results[0]
        known = None if isinstance(self._error, JobError) else failures.find_fatal_failure(str(self._error))
        raise known or self._error from self._error
