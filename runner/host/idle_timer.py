"""Idle timer, for `runner --until-idle`: the runner ends by itself after it has had nothing to do for a time."""

from collections.abc import Callable

import anyio

from runner.claiming.loop import ClaimLoop
from runner.claiming.volumes import HostContents
from runner.host.heartbeat import HostActivity

CHECK_INTERVAL_S = 1.0


class IdleTimer:
    """Stops claiming after `after_s` without work; None: never.

    Work is a job that runs, a result that is being delivered, a message that is being answered, and an image or a
    volume that is being fetched: a job may wait for it. While the broker is away there is no work, so a rented machine
    is given back.
    """

    def __init__(
        self, after_s: float | None, activity: HostActivity, claim_loop: ClaimLoop, contents: HostContents
    ) -> None:
        self._after_s = after_s
        self._activity = activity
        self._claim_loop = claim_loop
        self._contents = contents

    async def run(self, on_idle: Callable[[], None]) -> None:
        """Return after the time without work, and after `on_idle` was called. The claim loop claims nothing then."""
        if self._after_s is None:
            return
        interval_s = min(CHECK_INTERVAL_S, self._after_s / 4)
        # Intervals are counted, not the clock read: a machine that was suspended did not look for work meanwhile.
        idle_s, started = 0.0, 0
        while True:
            await anyio.sleep(interval_s)
            # No await from here to `stop`: a message that comes in the meantime is returned, not lost.
            if self._is_busy() or started != self._claim_loop.jobs_started:
                idle_s, started = 0.0, self._claim_loop.jobs_started
            elif (idle_s := idle_s + interval_s) >= self._after_s:
                self._claim_loop.stop()
                on_idle()
                return

    def _is_busy(self) -> bool:
        return not self._activity.is_empty() or self._claim_loop.is_handling or self._contents.is_fetching
