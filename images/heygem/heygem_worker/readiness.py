"""When the vendor is ready: it says so, in its log. Its own programs sleep 10 or 15 s instead and hope."""

from __future__ import annotations

from collections.abc import Iterable


class Readiness:
    """Waits for every one of `lines` (parts of log lines) to have been said, in any order."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._missing = list(lines)

    def hear(self, said: Iterable[str]) -> None:
        """More lines of the log."""
        for line in said:
            self._missing = [part for part in self._missing if part not in line]

    @property
    def missing(self) -> list[str]:
        """What has not been said yet; empty when it is ready."""
        return self._missing
