"""One body to several sinks, each in its own thread, so that hashing, writing and the network overlap."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from anyio import create_memory_object_stream, create_task_group, to_thread
from anyio.streams.memory import MemoryObjectReceiveStream

from edge.store.port import BLOCK_BYTES, AssetTooLarge

Sink = Callable[[bytes], object]


async def rechunk(chunks: AsyncIterator[bytes], size: int = BLOCK_BYTES) -> AsyncIterator[bytes]:
    """Join chunks into blocks of at least `size` bytes; the last may be smaller. A server passes 64 KiB at a time."""
    waiting: list[bytes] = []
    waiting_bytes = 0
    async for chunk in chunks:
        waiting.append(chunk)
        waiting_bytes += len(chunk)
        if waiting_bytes >= size:
            yield b"".join(waiting)
            waiting.clear()
            waiting_bytes = 0
    if waiting_bytes:
        yield b"".join(waiting)


async def read_file_blocks(path: Path) -> AsyncIterator[bytes]:
    """Yield the blocks of a local file."""
    file = await to_thread.run_sync(lambda: path.open("rb", buffering=0))
    try:
        while block := await to_thread.run_sync(file.read, BLOCK_BYTES):
            yield block
    finally:
        file.close()


async def fan_out(chunks: AsyncIterator[bytes], limit: int, sinks: Sequence[Sink]) -> int:
    """Pass every block to every sink in order; return the size of the body when all sinks are done.

    At most two blocks wait for a sink, one of them in its thread, so a slow disk does not fill the memory.
    Raises AssetTooLarge, and errors of `chunks` or of a sink without an ExceptionGroup around them.
    """
    try:
        return await _fan_out(chunks, limit, sinks)
    except ExceptionGroup as group:
        # The first failure cancels the other tasks, so the first leaf is the cause. Callers handle errors, not groups.
        raise _first_leaf(group) from group


async def _fan_out(chunks: AsyncIterator[bytes], limit: int, sinks: Sequence[Sink]) -> int:
    size = 0
    # Close the inlets first, which ends the sink tasks, then the outlets. A failing sink must not close its own
    # outlet: the sender would then report a broken stream instead of the cause.
    async with AsyncExitStack() as outlets, create_task_group() as tasks, AsyncExitStack() as inlets:
        streams = []
        for sink in sinks:
            inlet, outlet = create_memory_object_stream[bytes](max_buffer_size=1)
            streams.append(await inlets.enter_async_context(inlet))
            tasks.start_soon(_feed_sink, await outlets.enter_async_context(outlet), sink)
        async for block in rechunk(chunks):
            size += len(block)
            if size > limit:
                raise AssetTooLarge(limit)
            for stream in streams:
                await stream.send(block)
    return size


async def _feed_sink(outlet: MemoryObjectReceiveStream[bytes], sink: Sink) -> None:
    async for block in outlet:
        await to_thread.run_sync(sink, block)


def _first_leaf(group: ExceptionGroup[Exception]) -> Exception:
    leaf: Exception = group
    while isinstance(leaf, ExceptionGroup):
        leaf = leaf.exceptions[0]
    return leaf
