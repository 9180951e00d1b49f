"""A wait that doubles with every failure in a row."""


class Pause:
    """Between two tries at something that failed; times are monotonic seconds. `why`: of the last failure, or ""."""

    def __init__(self) -> None:
        self.why = ""
        self._failures = 0
        self._until = 0.0

    def lasts(self, now: float) -> bool:
        """Whether it is too early to try again."""
        return self.left_s(now) > 0

    def left_s(self, now: float) -> float:
        """Seconds until the next try."""
        return max(0.0, self._until - now)

    def fail(self, why: str, now: float, first_s: float, most_s: float) -> None:
        """It failed: wait `first_s`, twice that after the next failure, `most_s` at most."""
        self.why = why
        self._until = now + min(first_s * 2.0 ** min(self._failures, 32), most_s)
        self._failures += 1

    def clear(self) -> None:
        """It went well."""
        self.why, self._failures, self._until = "", 0, 0.0
