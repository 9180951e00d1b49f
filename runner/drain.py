"""Going down in two scopes: first nothing new, then, when the grace is over, nothing at all.

What an engine keeps running without us is left for the next life to adopt; what would end with us, or has not begun, is
stopped and given back, at no cost to the job.
"""

import anyio

from runner.roster import Roster
from runner.verdict import Intent


async def drain(roster: Roster, *, grace_s: float, settle_s: float, leave: bool) -> None:
    """Wait `grace_s` for the jobs to end; stop those that cannot be left, and wait `settle_s` for their records."""
    with anyio.move_on_after(grace_s):
        await roster.until(lambda there: not there)
    stopped = {place for place, execution in roster.there.items() if not leave or execution.handle is None}
    for place in stopped:
        if (execution := roster.there.get(place)) is not None:
            await execution.stop(Intent.DRAIN)
    with anyio.move_on_after(settle_s):
        await roster.until(stopped.isdisjoint)
