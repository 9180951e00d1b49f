"""Bounded work for many owners: so much at a time in all, so much for each, so that none crowds out another."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import CapacityLimiter


class Turns:
    """An owner waits for its own places first, and only with those in hand in the common line: one owner stands there
    with at most `each` others wait behind."""

    def __init__(self, total: int, each: int) -> None:
        self._all = CapacityLimiter(total)
        self._each = each
        self._own: dict[str, CapacityLimiter] = {}

    @asynccontextmanager
    async def turn(self, owner: str) -> AsyncIterator[None]:
        """One place, for as long as the block runs."""
        own = self._own.setdefault(owner, CapacityLimiter(self._each))
        try:
            # Objects as borrowers: a task may take several turns.
            async with _place(own), _place(self._all):
                yield
        finally:
            if not own.borrowed_tokens and not own.statistics().tasks_waiting:
                self._own.pop(owner, None)


@asynccontextmanager
async def _place(limiter: CapacityLimiter) -> AsyncIterator[None]:
    borrower = object()
    await limiter.acquire_on_behalf_of(borrower)
    try:
        yield
    finally:
        limiter.release_on_behalf_of(borrower)
