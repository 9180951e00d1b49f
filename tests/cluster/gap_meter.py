"""Measure the gaps between one answer and the next."""

import time


class GapMeter:
    """The times at which something happened, and the longest gap between two of them."""

    def __init__(self) -> None:
        self._last: float | None = None
        self.count = 0
        self.longest_s = 0.0

    def beat(self) -> None:
        """Record that it happened now."""
        now = time.monotonic()
        if self._last is not None:
            self.longest_s = max(self.longest_s, now - self._last)
        self._last = now
        self.count += 1

    def take_longest_s(self) -> float:
        """Return the longest gap since the last call."""
        longest, self.longest_s = self.longest_s, 0.0
        return longest
