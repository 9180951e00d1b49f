"""`lamplighter` on a faster clock: presence, the gone rule and the law's pauses take a few seconds, not minutes.

Only constants are other; everything that runs is the program itself. Names are bound where they are imported, so they
are changed before anything else is. Only an edge needs what the edge is made of: a runner would start slower for it.
"""

import sys
from functools import partial

from schemas import host

host.PRESENCE_TTL_S, host.PRESENCE_EVERY_S, host.GONE_AFTER_S = 5.0, 0.5, 10.0

if sys.argv[1] == "edge":
    from edge import assembly
    from edge.power import cases, law

    cases.ABANDONED_S, cases.SETTLE_S = 2.0, 2.0
    law.BACKOFF_FIRST_S = 0.4
    assembly.Means = partial(assembly.Means, tick_s=0.5, poll_s=0.3)  # type: ignore[misc, assignment]

from lamplighter.cli import main  # noqa: E402 - see above

if __name__ == "__main__":
    main()
