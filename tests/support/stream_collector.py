"""Streams without end, read in the background of a test."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import anyio

from tests.support.wait import WAIT_TIMEOUT_S

T = TypeVar("T")


class StreamCollector(Generic[T]):
    """What a stream has given so far."""

    def __init__(self) -> None:
        self.items: list[T] = []
        self._grown = anyio.Event()

    def add(self, item: T) -> None:
        self.items.append(item)
        self._grown.set()
        self._grown = anyio.Event()

    async def wait_for(self, enough: Callable[[list[T]], bool]) -> list[T]:
        """The items once there are enough; TimeoutError otherwise."""
        with anyio.fail_after(WAIT_TIMEOUT_S):
            while not enough(self.items):
                await self._grown.wait()
        return list(self.items)

    async def wait_for_count(self, wanted: int) -> list[T]:
        """The items once there are `wanted`."""
        return await self.wait_for(lambda items: len(items) >= wanted)


@asynccontextmanager
async def collect_stream(stream: AsyncIterator[T]) -> AsyncIterator[StreamCollector[T]]:
    """Read `stream` until the end of the block."""
    gathered: StreamCollector[T] = StreamCollector()

    async def read() -> None:
        async for item in stream:
            gathered.add(item)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        try:
            yield gathered
        finally:
            tasks.cancel_scope.cancel()
