"""How long nothing came: the gap between one answer and the next."""

import time


class GapMeter:
    """When something happened, and the longest time in which it did not."""

    def __init__(self) -> None:
        self._last: float | None = None
        self.count = 0
        self.longest_s = 0.0

    def beat(self) -> None:
        """It happened now."""
        now = time.monotonic()
        if self._last is not None:
            self.longest_s = max(self.longest_s, now - self._last)
        self._last = now
        self.count += 1

    def take_longest_s(self) -> float:
        """The longest time since the last call; counts anew."""
        longest, self.longest_s = self.longest_s, 0.0
        return longest
