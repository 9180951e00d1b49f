"""The fan-out of a body to several sinks: order, back-pressure, and errors without a group."""

import threading
from collections.abc import AsyncIterator

import anyio
import pytest

from edge.store.file_io import fan_out, rechunk


async def pieces(count: int, size: int = 100) -> AsyncIterator[bytes]:
    for n in range(count):
        yield bytes([n % 256]) * size


async def test_small_pieces_become_blocks_and_nothing_is_lost() -> None:
    seen = [block async for block in rechunk(pieces(25), 1000)]
    assert [len(block) for block in seen] == [1000, 1000, 500]
    assert b"".join(seen) == b"".join([piece async for piece in pieces(25)])


async def test_every_sink_sees_all_in_order() -> None:
    first, second = bytearray(), bytearray()
    assert await fan_out(pieces(40, 100_000), 1 << 30, [first.extend, second.extend]) == 4_000_000
    assert first == second == b"".join([piece async for piece in pieces(40, 100_000)])


async def test_a_slow_sink_holds_the_sender_back() -> None:
    taken = 0
    release = threading.Event()
    quiet = anyio.Event()

    async def counted() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(20):
            taken += 1
            if taken == 4:  # one block in the sink, one queued, one waiting to be sent
                quiet.set()
            yield bytes(1 << 20)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fan_out, counted(), 1 << 30, [lambda _: release.wait(10)])
        with anyio.move_on_after(0.2):
            await quiet.wait()
        held = taken
        release.set()
    assert held == 3
    assert taken == 20


async def test_what_a_sink_raises_comes_bare() -> None:
    def broken(_: bytes) -> None:
        raise OSError(5, "the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        await fan_out(pieces(100, 1 << 18), 1 << 30, [len, broken])
