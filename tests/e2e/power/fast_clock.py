"""`lamplighter` with shorter intervals: heartbeats, the gone rule and power pauses take seconds, not minutes.

Only constants differ; the program itself runs. Modules copy these constants when they are imported, so they are changed
before anything else is imported. Only an edge imports the edge: a runner would start more slowly.
"""

import sys
from functools import partial

from schemas import host

host.HEARTBEAT_TTL_S, host.HEARTBEAT_INTERVAL_S, host.HOST_GONE_TIMEOUT_S = 5.0, 0.5, 10.0

if sys.argv[1] == "edge":
    from edge import domain
    from edge.power import conditions, state_machine
    from edge.power.drivers import kubernetes
    from schemas.backoff import Backoff

    conditions.CALL_ABANDONED_AFTER_S, conditions.DRAIN_SETTLE_S = 2.0, 2.0
    kubernetes.LOST_AFTER_S = 1.0
    state_machine.CALL_BACKOFF = Backoff(0.4, 600.0)
    domain.PowerDependencies = partial(domain.PowerDependencies, tick_interval_s=0.5, poll_interval_s=0.3)  # type: ignore[attr-defined, assignment]

from lamplighter.cli import main  # noqa: E402 - see above

if __name__ == "__main__":
    main()
