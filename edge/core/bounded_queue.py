"""A bounded line of items between two tasks. Unlike a memory stream, a cancelled or timed-out `take` loses nothing."""

from asyncio import Event  # of asyncio, because it can be cleared: one is waited for with every item
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from anyio import move_on_after

T = TypeVar("T")
_CLOSE_TIMEOUT_S = 2.0


@asynccontextmanager
async def closing(items: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """`items`, closed however the block ends."""
    try:
        yield items
    finally:
        if isinstance(items, AsyncGenerator):
            with move_on_after(_CLOSE_TIMEOUT_S, shield=True):
                await items.aclose()


class BoundedQueue(Generic[T]):
    """Many may put, one takes."""

    def __init__(self, capacity: int) -> None:
        self._items: deque[T] = deque()
        self._capacity = capacity
        self._not_empty = Event()
        self._not_full = Event()

    async def put(self, item: T) -> None:
        """Add behind the others; waits while there is no room."""
        while len(self._items) >= self._capacity:
            self._not_full.clear()
            await self._not_full.wait()
        self._items.append(item)
        self._not_empty.set()

    async def put_all(self, items: AsyncIterator[T]) -> None:
        """Put all of `items`, and close them however that ends: a reader cut off here would keep its connection."""
        async with closing(items):
            async for item in items:
                await self.put(item)

    def try_put(self, item: T) -> bool:
        """Add if there is room; whether there was."""
        room = len(self._items) < self._capacity
        if room:
            self._items.append(item)
            self._not_empty.set()
        return room

    async def get_batch(self, limit: int) -> list[T]:
        """At least one and at most `limit` items, oldest first; waits for the first."""
        while not self._items:
            self._not_empty.clear()
            await self._not_empty.wait()
        taken = [self._items.popleft() for _ in range(min(limit, len(self._items)))]
        self._not_full.set()
        return taken
