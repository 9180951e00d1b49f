"""`lamplighter` whose sized streams are small, so that a small store holds them all. Only constants are other."""

from msgspec.structs import replace

from bus.nats import topology

SIZE = 1 << 20


def shrink_streams() -> tuple[topology.StreamConfig, ...]:
    """The streams, none of which reserves more than SIZE bytes."""
    return tuple(replace(one, max_bytes=min(one.max_bytes, SIZE)) for one in topology.STREAMS)


if __name__ == "__main__":
    topology.STREAMS = shrink_streams()
    from lamplighter.cli import main

    main()
