"""One body, several sinks, each in a thread: hashing and writing overlap with each other and with the network."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from anyio import create_memory_object_stream, create_task_group, to_thread
from anyio.streams.memory import MemoryObjectReceiveStream

from edge.store.port import BLOCK_BYTES, AssetTooLarge

Sink = Callable[[bytes], object]


async def rechunk(chunks: AsyncIterator[bytes], size: int = BLOCK_BYTES) -> AsyncIterator[bytes]:
    """The same bytes in pieces of at least `size`, the last one smaller: a server hands over 64 KiB at a time."""
    waiting: list[bytes] = []
    held = 0
    async for chunk in chunks:
        waiting.append(chunk)
        held += len(chunk)
        if held >= size:
            yield b"".join(waiting)
            waiting.clear()
            held = 0
    if held:
        yield b"".join(waiting)


async def read_file_blocks(path: Path) -> AsyncIterator[bytes]:
    """A file of this machine, in blocks."""
    file = await to_thread.run_sync(lambda: path.open("rb", buffering=0))
    try:
        while block := await to_thread.run_sync(file.read, BLOCK_BYTES):
            yield block
    finally:
        file.close()


async def fan_out(chunks: AsyncIterator[bytes], limit: int, sinks: Sequence[Sink]) -> int:
    """Give every block to every sink, in order, and return the bytes seen once all sinks are done.

    At most two blocks wait for a sink (one in its hands, one behind it), so memory stays flat however slow the disk.
    Raises TooLarge, and whatever `chunks` or a sink raises, bare.
    """
    try:
        return await _fan_out(chunks, limit, sinks)
    except ExceptionGroup as group:
        # One failure cancels the rest, so the first leaf is the cause; callers know errors, not groups.
        raise _first_leaf(group) from group


async def _fan_out(chunks: AsyncIterator[bytes], limit: int, sinks: Sequence[Sink]) -> int:
    size = 0
    # Closed in this order: inlets (that ends the drains), then the drains, then outlets. A failing sink must not close
    # its own outlet: the sender would then report a broken line instead of the cause.
    async with AsyncExitStack() as outlets, create_task_group() as tasks, AsyncExitStack() as inlets:
        lines = []
        for sink in sinks:
            inlet, outlet = create_memory_object_stream[bytes](max_buffer_size=1)
            lines.append(await inlets.enter_async_context(inlet))
            tasks.start_soon(_feed_sink, await outlets.enter_async_context(outlet), sink)
        async for block in rechunk(chunks):
            size += len(block)
            if size > limit:
                raise AssetTooLarge(limit)
            for line in lines:
                await line.send(block)
    return size


async def _feed_sink(outlet: MemoryObjectReceiveStream[bytes], sink: Sink) -> None:
    async for block in outlet:
        await to_thread.run_sync(sink, block)


def _first_leaf(group: ExceptionGroup[Exception]) -> Exception:
    leaf: Exception = group
    while isinstance(leaf, ExceptionGroup):
        leaf = leaf.exceptions[0]
    return leaf
