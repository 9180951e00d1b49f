"""`lamplighter` with the short intervals of `fast_clock` and of `quick_thresholds`, and with small streams.

Webhooks are tried every second, and a condition has ended after a second without it. Only constants differ. Modules
copy them when they are imported, so the order matters.
"""

import sys

from schemas import installation
from tests.observe.quick_thresholds import QUICK_THRESHOLDS

installation.THRESHOLDS = QUICK_THRESHOLDS

if sys.argv[1] == "edge":
    from edge.notify import conditions as notified
    from edge.webhooks import dispatcher

    notified.CLEAR_S = 1.0
    dispatcher.RETRY_DELAYS_S = (1.0,) * 600  # type: ignore[assignment]

from tests.e2e.power import fast_clock  # noqa: E402 - it changes constants before it imports the rest

if __name__ == "__main__":
    from bus.nats import topology
    from tests.broken.small_streams import shrink_streams

    topology.STREAMS = shrink_streams()
    fast_clock.main()
