"""`lamplighter` with the short intervals of `fast_clock` and with small streams. Only constants differ."""

from tests.e2e.power import fast_clock  # first: it changes constants before anything else is imported

if __name__ == "__main__":
    from bus.nats import topology
    from tests.broken.small_streams import shrink_streams

    topology.STREAMS = shrink_streams()
    fast_clock.main()
