"""A response that lasts as long as its container, read in a thread that can be woken; and how long to hope for one."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, suppress

import requests

from runner.engines.port import EngineGone

BLOCK = 65_536
ROOM = 4 * BLOCK  # what is read ahead; then the thread waits, and the daemon keeps the rest on disk

Read = Callable[[], Awaitable[bytes]]
Border = Callable[[], AbstractContextManager[None]]


@asynccontextmanager
async def reading(
    pool: ThreadPoolExecutor, open_response: Callable[[], requests.Response], border: Border
) -> AsyncIterator[Read]:
    """A function for the next bytes of the response, empty at its end; foreign errors pass through `border`.

    Holds one thread of `pool`. Leaving the block wakes it: a cancelled reader leaves no thread behind.
    """

    def bordered() -> requests.Response:
        with border():
            return open_response()

    opening = pool.submit(bordered)
    try:
        response = await asyncio.wrap_future(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close)
        raise
    pipe = _Pipe(response)
    pumping = pool.submit(pipe.pump, border)
    try:
        yield pipe.read
    finally:
        pipe.leave()
        pumping.add_done_callback(lambda _: response.close())


def _close(opening: "Future[requests.Response]") -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


class _Pipe:
    """From the thread that reads to the loop, many small reads a hand-over: the daemon sends every line by itself."""

    def __init__(self, response: requests.Response) -> None:
        self._response = response
        self._loop = asyncio.get_running_loop()
        self._filled = asyncio.Event()
        self._changed = threading.Condition()
        self._data = bytearray()
        self._ended = False
        self._failure: EngineGone | None = None

    def pump(self, border: Border) -> None:
        """The thread's work: read until the end, the failure, or until nobody reads any more."""
        try:
            with border():
                while data := self._response.raw.read1(BLOCK):
                    if not self._put(data):
                        break
        except EngineGone as gone:
            self._failure = gone
        with self._changed:
            self._ended = True
            self._wake()

    def _put(self, data: bytes) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: len(self._data) < ROOM or self._ended)
            if not self._data:
                self._wake()
            self._data += data
            return not self._ended

    def _wake(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._filled.set)

    async def read(self) -> bytes:
        """What has come since, or empty at the end. Raises the failure that ended it."""
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

    def leave(self) -> None:
        """Nobody reads any more: end the thread wherever it waits."""
        with self._changed:
            if not self._ended:
                with suppress(RuntimeError, OSError):  # the end came this very moment
                    self._response.raw.shutdown()
            self._ended = True
            self._changed.notify()


class Patience:
    """How long an engine that does not answer is waited for. Failures further apart than that are two troubles."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._first = self._last = -limit_s

    def check(self, gone: EngineGone) -> None:
        """Raises `gone` once it has lasted too long."""
        now = asyncio.get_running_loop().time()
        if now - self._last > self._limit_s:
            self._first = now
        self._last = now
        if now - self._first >= self._limit_s:
            raise gone
