"""Writes to files: durable ones, and one body to several sinks at the same time.

A durable write goes to a temporary file that is renamed into place, with fsync of the folders; it blocks. Each sink
has its own thread, so that hashing, writing and the network overlap.
"""

import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from threading import Lock

from anyio import create_memory_object_stream, create_task_group, to_thread
from anyio.streams.memory import MemoryObjectReceiveStream

from bus.secret_files import fsync_folder
from edge.store.port import BLOCK_BYTES, AssetStoreFull, AssetTooLarge, StoreBroken

WRITEBACK_BYTES = 8 * 1024 * 1024  # written between two requests to start write-back

_DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def map_disk_errors() -> Iterator[None]:
    """Map OSError to AssetStoreFull or StoreBroken."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL_ERRNOS:
            raise AssetStoreFull from error
        raise StoreBroken(f"the asset store failed ({error}): check its disk or network folder") from error


class AtomicFile:
    """A file that appears at its final path whole, or not at all.

    `temp` must be on the same file system as the final path. The order of the steps makes the write crash-safe: fsync
    of the bytes, then the atomic rename, then fsync of the folder. After a crash at any point the final path holds
    nothing or the whole file.

    A task that is cancelled from outside anyio leaves its thread running. The lock makes `close` wait for that thread,
    and every call after `close` does nothing.
    """

    def __init__(self, temp: Path) -> None:
        self._temp = temp
        self._handle = -1
        self._written = 0
        self._written_back = 0
        self._closed = False
        self._lock = Lock()

    def open(self) -> None:
        """Create the temporary file. Raises AssetStoreFull, StoreBroken."""
        with self._lock, map_disk_errors():
            if not self._closed:
                self._handle = os.open(self._temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    def link_existing(self, place: Path) -> bool:
        """Make `temp` a hard link to `place`; return False if `place` does not exist or links are not supported.

        The link keeps the bytes while a body of the same digest is verified: the file at `place` may be trashed and
        erased in the meantime.
        """
        with self._lock, suppress(OSError):
            if not self._closed:
                self._temp.hardlink_to(place)
                return True
        return False

    def write(self, block: bytes) -> None:
        """Append `block`. Start write-back every WRITEBACK_BYTES, so that the fsync at the end is short."""
        with self._lock, map_disk_errors():
            rest = memoryview(block)
            while rest:
                rest = rest[os.write(self._handle, rest) :]
            self._written += len(block)
            if self._written - self._written_back >= WRITEBACK_BYTES:
                self._start_writeback()

    def _start_writeback(self) -> None:
        if hasattr(os, "posix_fadvise"):  # not on macOS
            # On dirty pages DONTNEED starts the write-back without waiting for it (Linux, mm/fadvise.c).
            os.posix_fadvise(
                self._handle, self._written_back, self._written - self._written_back, os.POSIX_FADV_DONTNEED
            )
        self._written_back = self._written

    def commit(self, place: Path) -> None:
        """Make the written file, or the file that `link_existing` linked, appear at `place`, durably."""
        with self._lock, map_disk_errors():
            if self._handle == -1:
                with suppress(FileExistsError):
                    place.hardlink_to(self._temp)
            else:
                os.fsync(self._handle)
                self._temp.replace(place)
            fsync_folder(place.parent)

    def close(self) -> None:
        """Close the file, and remove it unless `commit` moved it."""
        with self._lock, map_disk_errors():
            self._closed = True
            if self._handle != -1:
                os.close(self._handle)
                self._handle = -1
            self._temp.unlink(missing_ok=True)


def create_durable_folder(folder: Path) -> None:
    """Create `folder` (mode 0700) and its missing parents, and make all of their names durable."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in missing:
        fsync_folder(path.parent)


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
