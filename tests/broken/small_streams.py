"""`lamplighter` with small streams, so that a small store holds all of them. Only constants differ."""

from msgspec.structs import replace

from bus.nats import topology

SIZE = 1 << 20


def shrink_streams() -> tuple[topology.StreamConfig, ...]:
    """Return the streams with at most SIZE bytes each."""
    return tuple(replace(one, max_bytes=min(one.max_bytes, SIZE)) for one in topology.STREAMS)


if __name__ == "__main__":
    topology.STREAMS = shrink_streams()
    from lamplighter.cli import main

    main()
