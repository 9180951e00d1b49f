"""Readers of a job's output that an event loop can wake and end: an HTTP response of Docker, and files that grow.

The response lasts as long as its container, and a thread reads it.

The files are watched by inotify, or by polling where the kernel gives no inotify. A poll every 20 ms delays each line
by 10 ms, and costs a reader of a silent job 50 wake-ups per second.
"""

import asyncio
import ctypes
import os
import struct
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from runner.engines.launch import start_cancellable
from runner.engines.port import EngineUnavailable

BLOCK_BYTES = 65_536
BUFFER_LIMIT_BYTES = 4 * BLOCK_BYTES  # read ahead; then the thread waits, and the daemon keeps the rest on disk

ReadBytes = Callable[[], Awaitable[bytes]]
ErrorMapping = Callable[[], AbstractContextManager[None]]


class StreamedResponse(Protocol):
    """What is used of a response of `requests`, whose import takes time that a runner without Docker need not spend."""

    raw: Any

    def close(self) -> None: ...


@asynccontextmanager
async def open_stream(
    pool: ThreadPoolExecutor, open_response: Callable[[], StreamedResponse], map_errors: ErrorMapping
) -> AsyncIterator[ReadBytes]:
    """Yield a function that returns the next bytes of the response, empty at its end.

    `map_errors` translates foreign errors. The block holds one thread of `pool`; leaving it wakes and ends the thread.
    """

    def open_mapped() -> StreamedResponse:
        with map_errors():
            return open_response()

    response = await start_cancellable(pool, open_mapped, lambda opened: opened.close())
    pipe = _ThreadPipe(response)
    pump_future = pool.submit(pipe.pump, map_errors)
    try:
        yield pipe.read
    finally:
        pipe.close()
        pump_future.add_done_callback(lambda _: response.close())


class _ThreadPipe:
    """Pipe from a reading thread to the event loop. It joins many small reads: the daemon sends each line alone."""

    def __init__(self, response: StreamedResponse) -> None:
        self._response = response
        self._loop = asyncio.get_running_loop()
        self._filled = asyncio.Event()
        self._changed = threading.Condition()
        self._data = bytearray()
        self._ended = False
        self._failure: EngineUnavailable | None = None

    def pump(self, map_errors: ErrorMapping) -> None:
        """Read in the thread until the end, a failure, or `close`."""
        try:
            with map_errors():
                while data := self._response.raw.read1(BLOCK_BYTES):
                    if not self._put(data):
                        break
        except EngineUnavailable as error:
            self._failure = error
        with self._changed:
            self._ended = True
            self._wake()

    def _put(self, data: bytes) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: len(self._data) < BUFFER_LIMIT_BYTES or self._ended)
            if not self._data:
                self._wake()
            self._data += data
            return not self._ended

    def _wake(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._filled.set)

    async def read(self) -> bytes:
        """Return the bytes received since the last call; empty at the end. Raises the failure that ended the stream."""
        await self._filled.wait()
        with self._changed:
            data = bytes(self._data)
            self._data.clear()
            if not self._ended:
                self._filled.clear()
            self._changed.notify()
        if not data and self._failure is not None:
            raise self._failure
        return data

    def close(self) -> None:
        """Stop reading: end the thread wherever it waits."""
        with self._changed:
            if not self._ended:
                with suppress(RuntimeError, OSError):  # the stream ended at this moment
                    self._response.raw.shutdown()
            self._ended = True
            self._changed.notify()


_LIBC = ctypes.CDLL(None, use_errno=True)
# From linux/inotify.h: modified, written and closed, moved here, created.
_CHANGES = 0x2 | 0x8 | 0x80 | 0x100
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows
_READ_BYTES = 64 * 1024

POLL_INTERVAL_S = 0.02  # without inotify, and the least time between reads of a job that prints without end
CHECK_INTERVAL_S = 0.25  # with inotify: the shim may have been killed, which changes no file
GATHER_S = 0.001  # a job often writes several lines at once; what follows a silence is read at once
PROMPT_WAKES = 3  # in each POLL_INTERVAL_S


class FolderWatch:
    """Watches folders for one event loop, with one inotify instance: a user has few."""

    def __init__(self) -> None:
        self._fd = -1
        self._waiting: defaultdict[int, list[FolderChanges]] = defaultdict(list)

    def open(self) -> None:
        """Begin to watch. Without inotify (too many instances), each reader polls."""
        self._fd = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd >= 0:
            asyncio.get_running_loop().add_reader(self._fd, self._read_events)

    def close(self) -> None:
        """Close the inotify instance: readers that still wait only check at intervals."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    @contextmanager
    def watch(self, folder: Path) -> Iterator["FolderChanges"]:
        """Give the changes of the files in `folder` from now on."""
        watch = _LIBC.inotify_add_watch(self._fd, os.fsencode(folder), _CHANGES) if self._fd >= 0 else -1
        changes = FolderChanges(is_watched=watch >= 0)
        if watch < 0:
            yield changes
            return
        self._waiting[watch].append(changes)
        try:
            yield changes
        finally:
            self._waiting[watch].remove(changes)
            if not self._waiting[watch]:
                del self._waiting[watch]
                _LIBC.inotify_rm_watch(self._fd, watch)

    def _read_events(self) -> None:
        with suppress(BlockingIOError):
            data = os.read(self._fd, _READ_BYTES)
            at = 0
            while at < len(data):
                watch, _, _, length = _EVENT.unpack_from(data, at)
                at += _EVENT.size + length
                readers = [changes for waiting in self._waiting.values() for changes in waiting]
                for changes in self._waiting.get(watch, []) if watch >= 0 else readers:  # below 0: events were lost
                    changes.notify()


class FolderChanges:
    """The changes of one folder for one reader."""

    def __init__(self, *, is_watched: bool) -> None:
        self._is_watched = is_watched
        self._changed = asyncio.Event()
        self._window_at = 0.0
        self._wakes = 0

    def notify(self) -> None:
        """Wake the reader: a file has changed."""
        self._changed.set()

    async def wait(self) -> None:
        """Wait until a file has changed since the last return, or for CHECK_INTERVAL_S.

        The first wakes of a moment are prompt, and the others at most one every POLL_INTERVAL_S.
        """
        if not self._is_watched:
            return await asyncio.sleep(POLL_INTERVAL_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(CHECK_INTERVAL_S):
                await self._changed.wait()
        now = asyncio.get_running_loop().time()
        if now - self._window_at > POLL_INTERVAL_S:
            self._window_at, self._wakes = now, 0
        self._wakes += 1
        if self._changed.is_set() and self._wakes > 1:
            await asyncio.sleep(GATHER_S if self._wakes <= PROMPT_WAKES else POLL_INTERVAL_S)
        self._changed.clear()
        return None
