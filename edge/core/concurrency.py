"""Concurrent work of the edge: a queue between tasks, a bounded number of calls, and two borders for exceptions.

Errors of the broker and the store become problems for clients, bugs become log entries. Expected errors are caught by
name where they happen. `log_and_continue` is for bugs: without it, one job that the edge misreads would end the edge,
and again at each restart.
"""

from asyncio import Event  # not anyio's: an asyncio event can be cleared, so that one serves all waits
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Generic, TypeVar

import structlog
from anyio import CapacityLimiter, create_task_group, move_on_after

from bus import interface as bus
from edge.store import port as store
from schemas.events import RecordUnreadable
from schemas.problems import ProblemError

T = TypeVar("T")
_CLOSE_TIMEOUT_S = 2.0

_log = structlog.get_logger()


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


UNAVAILABLE_RETRY_AFTER_S = 5

# The first class that matches decides. Text None: the error's own text is meant for the client.
_PROBLEMS_BY_ERROR: Mapping[type[Exception], tuple[str, str | None]] = {
    bus.BrokerFull: ("store_full", "the broker's store is full: delete jobs or give it more space, then try again"),
    bus.BrokerUnreachable: (
        "unavailable",
        "the broker does not answer: try again, with the same key or id nothing doubles; /readyz says what is wrong",
    ),
    bus.RevisionConflict: ("unavailable", "other requests keep changing this at the same time: try again"),
    bus.MessageTooLarge: ("body_too_large", "the request is larger than the broker accepts: move data into assets"),
    bus.BrokerDenied: ("internal", "the broker user of the edge lacks a permission: check nats.conf"),
    bus.RowUnreadable: (
        "internal",
        "a stored row cannot be read: the edge's log names it; delete it or write it again",
    ),
    RecordUnreadable: ("internal", "the stored record cannot be read: a newer version may have written it"),
    store.DigestMismatch: ("digest_mismatch", None),
    store.AssetTooLarge: ("body_too_large", None),
    store.AssetStoreFull: ("store_full", None),
    store.StoreBroken: ("unavailable", None),
    store.UploadChanged: ("offset_mismatch", None),
    store.UploadRemoved: ("not_found", None),
}


def problem_for_known_error(error: Exception) -> ProblemError | None:
    """Return the problem for `error`, or None for an error that is not in the table: a bug."""
    for kind, (code, text) in _PROBLEMS_BY_ERROR.items():
        if isinstance(error, kind):
            retry = UNAVAILABLE_RETRY_AFTER_S if code == "unavailable" else None
            return ProblemError(code, text or str(error), retry_after_s=retry)
    return None


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise ProblemError in place of the errors that the table names."""
    try:
        yield
    except tuple(_PROBLEMS_BY_ERROR) as error:
        problem = problem_for_known_error(error)
        if problem is None:
            raise
        raise problem from error


@contextmanager
def log_and_continue(event: str, *reraised: type[Exception], **fields: str) -> Iterator[None]:
    """Log an exception of the block with its traceback, as `event` with `fields`, and continue after the block.

    Exceptions of the classes `reraised` are not caught.
    """
    try:
        yield
    except reraised:
        raise
    except Exception:
        _log.exception(event, **fields)
