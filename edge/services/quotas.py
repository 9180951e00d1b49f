"""What one owner may have at once: jobs that wait, jobs that run, bytes, and submits a minute (429 beyond).

One edge keeps them exactly: an upload reserves its bytes before they are read. Several edges: waiting jobs are those
that STATE has told of (milliseconds), bytes are read again every 30 s, and each has its own submits of a minute.
"""

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from math import ceil
from typing import Annotated

from msgspec import Meta, Struct, structs

from bus.port import Table
from edge.services.index import Index
from edge.services.standing import Step
from schemas.asset import Reference
from schemas.errors import Refused
from schemas.job import JobKey
from schemas.words import WAITING

BYTES_AGE_S = 30.0
WAITING_AGAIN_S = 10
BYTES_AGAIN_S = 60
AHEAD_BYTES = 1024 * 1024  # reserved at a time, where nobody said how much comes
_SHARE = 8  # of what is left, no more than the eighth is reserved ahead
_MINUTE_S = 60.0

Promised = Callable[[str], Awaitable[int]]
Amount = Annotated[int, Meta(ge=0)]


class Limits(Struct, frozen=True):
    """What holds for every owner. 0: no limit.

    `waiting`: scheduled and queued jobs. `running`: how many of an owner's jobs may be handed to hosts, which is what
    keeps more from running. `bytes` of the assets, outputs among them, which are never refused.
    """

    waiting: Amount = 0
    running: Amount = 0
    bytes: Amount = 0
    submits_per_minute: Amount = 0


class OwnLimits(Struct, frozen=True):
    """What holds for one owner instead; what is left out is as for everybody."""

    waiting: Amount | None = None
    running: Amount | None = None
    bytes: Amount | None = None
    submits_per_minute: Amount | None = None


class _Bucket(Struct):
    """Submits left, as of `at` in seconds."""

    tokens: float
    at: float


class _Held(Struct):
    """Bytes of an owner's assets, read at `at` in seconds and counted on since."""

    total: int
    at: float


class Reservation:
    """Bytes of an owner's quota that an upload under way has, so that no other upload counts on them."""

    def __init__(self, owner: str, extend: Callable[["Reservation", int], Awaitable[None]], reserved: int) -> None:
        self.owner, self.reserved = owner, reserved
        self._extend = extend
        self._taken = 0

    async def take(self, size: int) -> None:
        """Use `size` bytes more. Raises Refused `quota_exceeded`; BusError."""
        if self._taken + size > self.reserved:
            await self._extend(self, self._taken + size - self.reserved)
        self._taken += size

    async def metered(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """`chunks`, each of them taken before it is passed on."""
        async for chunk in chunks:
            await self.take(len(chunk))
            yield chunk


async def _nothing(_: str) -> int:
    """Nothing is promised to anybody."""
    return 0


class Quotas:
    """`index` tells which jobs wait; `monotonic` in seconds."""

    def __init__(
        self,
        default: Limits,
        own: Mapping[str, OwnLimits],
        index: Index,
        references: Table[Reference],
        monotonic: Callable[[], float],
    ) -> None:
        self._default = default
        self._own = own
        self._index = index
        self._references = references
        self._monotonic = monotonic
        self._buckets: dict[str, _Bucket] = {}
        self._held: dict[str, _Held] = {}
        self._reserved: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self._coming: defaultdict[str, set[JobKey]] = defaultdict(set)
        self._promised: Promised = _nothing
        self.closed: frozenset[str] = frozenset()
        index.watch(self._see)

    def of(self, owner: str) -> Limits:
        """The limits that hold for an owner."""
        own = self._own.get(owner)
        return self._default if own is None else _merged(self._default, own)

    def running(self, owner: str) -> int:
        """How many of the owner's jobs may be handed to hosts; 0: any number."""
        return self.of(owner).running

    def check_open(self, owner: str) -> None:
        """Raises Refused `owner_deleting` while the owner is being deleted."""
        if owner in self.closed:
            raise Refused("owner_deleting", f"{owner} is being deleted: nothing of it is taken until that is done")

    @contextmanager
    def submitting(self, key: JobKey, *, anew: bool = True) -> Iterator[None]:
        """A job is about to wait; it counts from here on, unless the block raises. `anew`: it is a submit.

        Raises Refused `rate_limited`, `quota_exceeded`, `owner_deleting`, `unavailable`.
        """
        self.check_open(key.owner)
        limits = self.of(key.owner)
        if limits.submits_per_minute and anew:
            self._spend(key.owner, limits.submits_per_minute)
        if not limits.waiting:
            yield
            return
        self._check_waiting(key.owner, limits.waiting)
        self._coming[key.owner].add(key)
        try:
            yield
        except BaseException:
            self._arrived(key)
            raise

    def _spend(self, owner: str, per_minute: int) -> None:
        now = self._monotonic()
        bucket = self._buckets.setdefault(owner, _Bucket(float(per_minute), now))
        bucket.tokens = min(per_minute, bucket.tokens + (now - bucket.at) * per_minute / _MINUTE_S)
        bucket.at = now
        if bucket.tokens < 1:
            again = ceil((1 - bucket.tokens) * _MINUTE_S / per_minute)
            raise Refused(
                "rate_limited", f"at most {per_minute} submits a minute: try again in {again} s", retry_after_s=again
            )
        bucket.tokens -= 1

    def _check_waiting(self, owner: str, most: int) -> None:
        if not self._index.caught_up:
            raise Refused("unavailable", "the edge still reads its jobs: try again", retry_after_s=WAITING_AGAIN_S)
        if self._waiting[owner] + len(self._coming[owner]) >= most:
            said = f"{most} jobs of yours wait already, which is the most: let some start, or cancel them"
            raise Refused("quota_exceeded", said, retry_after_s=WAITING_AGAIN_S)

    def _see(self, steps: Sequence[Step]) -> None:
        for before, after in steps:
            if before is not None:
                self._waiting[before.owner] -= before.status in WAITING
            if after is not None:
                self._waiting[after.owner] += after.status in WAITING
                self._arrived(after.key)

    def _arrived(self, key: JobKey) -> None:
        """The index counts it now, or it does not come."""
        coming = self._coming.get(key.owner)
        if coming is not None:
            coming.discard(key)
            if not coming:
                del self._coming[key.owner]

    async def room(self, owner: str) -> int | None:
        """How many more bytes the owner may have, None: any number. Raises Refused `owner_deleting`; BusError."""
        self.check_open(owner)
        most = self.of(owner).bytes
        if not most:
            return None
        now, held = self._monotonic(), self._held.get(owner)
        if held is None or now - held.at > BYTES_AGE_S:
            rows = await self._references.rows(f"{owner}.")
            held = self._held[owner] = _Held(sum(row.value.bytes for row in rows.values()), now)
        promised = await self._promised(owner)
        return max(0, most - held.total - promised - self._reserved[owner])

    @asynccontextmanager
    async def reserving(self, owner: str, size: int | None) -> AsyncIterator[Reservation | None]:
        """Room for an upload, kept from all others while the block runs; None where there is no limit.

        `size`: what will come at least, reserved at once; None: nobody knows. Call `changed` inside the block.
        Raises Refused `quota_exceeded`, `owner_deleting`; BusError.
        """
        room = await self.room(owner)
        if room is None:
            yield None
            return
        reservation = Reservation(owner, self._extend, 0)
        self._add(reservation, size or 0, room)
        try:
            yield reservation
        finally:
            self._reserved[owner] -= reservation.reserved
            if not self._reserved[owner]:
                del self._reserved[owner]

    async def _extend(self, reservation: Reservation, size: int) -> None:
        room = await self.room(reservation.owner)
        if room is not None:
            self._add(reservation, max(size, min(AHEAD_BYTES, room // _SHARE)), room)

    def _add(self, reservation: Reservation, size: int, room: int) -> None:
        """There must be no wait between the look at `room` and this."""
        if size > room:
            raise no_room(room + reservation.reserved)
        reservation.reserved += size
        self._reserved[reservation.owner] += size

    def count(self, promised: Promised) -> None:
        """From now on what is `promised` to an owner's uploads takes room too."""
        self._promised = promised

    def changed(self, owner: str, size: int) -> None:
        """The owner has so many bytes more."""
        if owner in self._held:
            self._held[owner].total += size

    def forget(self, owner: str) -> None:
        """The owner has less: it is read anew when it is asked for."""
        self._held.pop(owner, None)


def no_room(room: int) -> Refused:
    """The refusal of more than `room` bytes."""
    said = f"{room} bytes are left of your quota: delete assets or jobs that you need no more"
    return Refused("quota_exceeded", said, retry_after_s=BYTES_AGAIN_S)


def _merged(default: Limits, own: OwnLimits) -> Limits:
    given = {name: value for name, value in structs.asdict(own).items() if value is not None}
    return structs.replace(default, **given)
