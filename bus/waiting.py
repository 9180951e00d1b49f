"""The port of JOBS. `bus.jobs` makes it true, `bus.memory.queue` too."""

from collections.abc import Collection
from typing import NamedTuple, Protocol

from schemas.job import Pointer
from schemas.words import Priority


class Lane(NamedTuple):
    """What one consumer hands out: the pointers of a pool that have one priority."""

    pool: str
    priority: Priority


class Delivery(Protocol):
    """One pointer handed out. It comes again after 30 s unless it is extended, postponed or done.

    After a crash of the broker it may come again whatever was said of it: who takes it goes by the record.
    """

    pointer: Pointer
    sequence: int

    async def extend(self) -> None:
        """Still at it: 30 s from now."""
        ...

    async def done(self) -> None:
        """Gone for good, acknowledged by the broker unless it forgot the delivery. Never before the record says so."""
        ...

    async def later(self, delay_s: float) -> None:
        """Hand it out again in `delay_s`, over a restart of the broker too (a crash right after: within 30 s)."""
        ...


WOKEN_S = 0.05  # a wake is said before what it tells of is stored; a store that takes longer is told of again


class Queue(Protocol):
    """JOBS: the pointers that wait, one consumer a pool and priority."""

    async def ensure(self, pools: Collection[str]) -> None:
        """Make the consumers of `pools` (the edge's right; the runner only binds)."""
        ...

    async def publish(self, pointer: Pointer, *, repair: bool = False) -> None:
        """Wake its lane and let it wait: whoever is woken takes it within WOKEN_S.

        Twice is once (Msg-Id = subject), but `repair` publishes anew.
        """
        ...

    async def take(self, pool: str, priority: Priority, wait_s: float = 0.0) -> Delivery | None:
        """The next one, at once, or one that comes within `wait_s`; None also when the consumer is not there yet."""
        ...

    async def withdraw(self, pointer: Pointer) -> None:
        """Remove that round's message, whoever holds it. Nothing happens when it is gone."""
        ...

    async def waiting(self, owner: str | None = None) -> set[Pointer]:
        """Every pointer in JOBS, those handed out included."""
        ...

    async def woken(self, pools: Collection[str], timeout_s: float) -> frozenset[Lane]:
        """Wait until one of `pools` is published to, at most `timeout_s`; its lanes that were, since the last call."""
        ...
