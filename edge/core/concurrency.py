"""Bounded concurrency: a queue between tasks, and a limited number of calls at a time."""

from asyncio import Event  # not anyio's: an asyncio event can be cleared, so that one serves all waits
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from anyio import CapacityLimiter, create_task_group, move_on_after

T = TypeVar("T")
_CLOSE_TIMEOUT_S = 2.0


@asynccontextmanager
async def closing(items: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Yield `items` and close the iterator when the block ends, also by cancellation."""
    try:
        yield items
    finally:
        if isinstance(items, AsyncGenerator):
            with move_on_after(_CLOSE_TIMEOUT_S, shield=True):
                await items.aclose()


class BoundedQueue(Generic[T]):
    """A first-in, first-out queue for many writers and one reader.

    Unlike anyio's memory streams, it loses no item when its reader is cancelled.
    """

    def __init__(self, capacity: int) -> None:
        self._items: deque[T] = deque()
        self._capacity = capacity
        self._not_empty = Event()
        self._not_full = Event()

    async def put(self, item: T) -> None:
        """Append `item`; wait while the queue is full."""
        while len(self._items) >= self._capacity:
            self._not_full.clear()
            await self._not_full.wait()
        self._items.append(item)
        self._not_empty.set()

    async def put_all(self, items: AsyncIterator[T]) -> None:
        """Append every item of `items`, then close the iterator, also when this call is cancelled.

        An iterator that stays open would keep its connection to the broker.
        """
        async with closing(items):
            async for item in items:
                await self.put(item)

    def try_put(self, item: T) -> bool:
        """Append `item` unless the queue is full; return whether it was appended."""
        has_room = len(self._items) < self._capacity
        if has_room:
            self._items.append(item)
            self._not_empty.set()
        return has_room

    async def get_batch(self, limit: int) -> list[T]:
        """Remove and return up to `limit` items, oldest first; wait until there is at least one."""
        while not self._items:
            self._not_empty.clear()
            await self._not_empty.wait()
        batch = [self._items.popleft() for _ in range(min(limit, len(self._items)))]
        self._not_full.set()
        return batch


async def gather_bounded(calls: Sequence[Callable[[], Awaitable[T]]], limit: int) -> list[T]:
    """Make the calls, at most `limit` at a time; return their results in order.

    An exception of one call cancels the others, as in a task group. If each call must have its own outcome, return
    expected errors as values.
    """
    results: dict[int, T] = {}
    limiter = CapacityLimiter(limit)

    async def make(index: int, call: Callable[[], Awaitable[T]]) -> None:
        async with limiter:
            results[index] = await call()

    async with create_task_group() as tasks:
        for index, call in enumerate(calls):
            tasks.start_soon(make, index, call)
    return [results[index] for index in range(len(calls))]
