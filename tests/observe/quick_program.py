"""`lamplighter` with the short intervals of `fast_clock`, small streams, and webhooks that are tried every second.

Only constants differ. Modules copy them when they are imported, so the order matters.
"""

from edge.webhooks import retry_policy

retry_policy.RETRY_DELAYS_S = (1.0,) * 600  # type: ignore[assignment]

from tests.e2e.power import fast_clock  # noqa: E402 - it changes constants before it imports the rest

if __name__ == "__main__":
    from bus.nats import topology
    from tests.broken.small_streams import shrink_streams

    topology.STREAMS = shrink_streams()
    fast_clock.main()
