"""Exponential backoff as data: the only place that computes how long to wait after several failures."""

from msgspec import Struct

_DOUBLING_LIMIT = 32  # 2**32 seconds is past any limit; without it a long outage would overflow a float


class Backoff(Struct, frozen=True):
    """Double the delay after each failure, from `first_s` up to `limit_s`. It keeps no state and reads no clock.

    A loop counts its own failures:

        for failures in itertools.count():
            if await attempt():
                return
            await anyio.sleep(BACKOFF.delay_s(failures, random()))
    """

    first_s: float
    limit_s: float

    def delay_s(self, failures: int, jitter: float = 0.0) -> float:
        """Return the delay after `failures` earlier failures: `first_s` for 0, twice that for 1, at most `limit_s`.

        `jitter` makes the delay longer by that share, so that tasks that failed together are not retried together. A
        random number in [0, 1) gives one to two times the delay. `limit_s` holds before the jitter.
        """
        return min(self.first_s * 2.0 ** min(failures, _DOUBLING_LIMIT), self.limit_s) * (1.0 + jitter)
