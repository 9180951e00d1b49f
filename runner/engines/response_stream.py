"""The reader of an HTTP response that lasts as long as its container.

A thread reads it, and the event loop can wake and end that thread.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, suppress

import requests

from runner.engines.port import EngineUnavailable

BLOCK_BYTES = 65_536
BUFFER_LIMIT_BYTES = 4 * BLOCK_BYTES  # read ahead; then the thread waits, and the daemon keeps the rest on disk

ReadBytes = Callable[[], Awaitable[bytes]]
ErrorMapping = Callable[[], AbstractContextManager[None]]


@asynccontextmanager
async def open_stream(
    pool: ThreadPoolExecutor, open_response: Callable[[], requests.Response], map_errors: ErrorMapping
) -> AsyncIterator[ReadBytes]:
    """Yield a function that returns the next bytes of the response, empty at its end.

    `map_errors` translates foreign errors. The block holds one thread of `pool`; leaving it wakes and ends the thread.
    """

    def open_mapped() -> requests.Response:
        with map_errors():
            return open_response()

    response_future = pool.submit(open_mapped)
    try:
        response = await asyncio.wrap_future(response_future)
    except asyncio.CancelledError:
        response_future.add_done_callback(_close_response)
        raise
    pipe = _ThreadPipe(response)
    pump_future = pool.submit(pipe.pump, map_errors)
    try:
        yield pipe.read
    finally:
        pipe.close()
        pump_future.add_done_callback(lambda _: response.close())


def _close_response(response_future: "Future[requests.Response]") -> None:
    if not response_future.cancelled() and response_future.exception() is None:
        response_future.result().close()


class _ThreadPipe:
    """Pipe from a reading thread to the event loop. It joins many small reads: the daemon sends each line alone."""

    def __init__(self, response: requests.Response) -> None:
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
