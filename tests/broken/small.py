"""`lamplighter` whose sized streams are small, so that a small store holds them all. Only constants are other."""

from msgspec.structs import replace

from bus import topology

SIZE = 1 << 20


def shrunken() -> tuple[topology.Stream, ...]:
    """The streams, none of which reserves more than SIZE bytes."""
    return tuple(replace(one, max_bytes=min(one.max_bytes, SIZE)) for one in topology.STREAMS)


if __name__ == "__main__":
    topology.STREAMS = shrunken()
    from lamplighter.cli import main

    main()
