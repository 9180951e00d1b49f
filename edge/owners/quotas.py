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

from bus.interface import Table
from edge.index.index import JobIndex
from edge.index.row import RowChange
from schemas.asset import AssetReference
from schemas.auth import ApiKey
from schemas.ids import JobKey
from schemas.problems import ProblemError
from schemas.status import WAITING_STATUSES

BYTES_CACHE_TTL_S = 30.0
WAITING_RETRY_AFTER_S = 10
BYTES_RETRY_AFTER_S = 60
RESERVE_AHEAD_BYTES = 1024 * 1024  # reserved at a time, where nobody said how much comes
_RESERVE_AHEAD_DIVISOR = 8  # of what is left, no more than the eighth is reserved ahead
_MINUTE_S = 60.0

PendingBytesSource = Callable[[str], Awaitable[int]]
QuotaAmount = Annotated[int, Meta(ge=0)]


class OwnerQuota(Struct, frozen=True):
    """What holds for every owner. 0: no limit.

    `waiting`: scheduled and queued jobs. `running`: how many of an owner's jobs may be handed to hosts, which is what
    keeps more from running. `bytes` of the assets, outputs among them, which are never refused.
    """

    waiting: QuotaAmount = 0
    running: QuotaAmount = 0
    bytes: QuotaAmount = 0
    submits_per_minute: QuotaAmount = 0


class OwnerQuotaOverride(Struct, frozen=True):
    """What holds for one owner instead; what is left out is as for everybody."""

    waiting: QuotaAmount | None = None
    running: QuotaAmount | None = None
    bytes: QuotaAmount | None = None
    submits_per_minute: QuotaAmount | None = None


class _TokenBucket(Struct):
    """Submits left, as of `at` in seconds."""

    tokens: float
    at: float


class _CachedBytes(Struct):
    """Bytes of an owner's assets, read at `at` in seconds and counted on since."""

    total: int
    read_at: float


class QuotaReservation:
    """Bytes of an owner's quota that an upload under way has, so that no other upload counts on them."""

    def __init__(self, owner: str, extend: Callable[["QuotaReservation", int], Awaitable[None]], reserved: int) -> None:
        self.owner, self.reserved = owner, reserved
        self._extend = extend
        self._used = 0

    async def use(self, size: int) -> None:
        """Use `size` bytes more. Raises Refused `quota_exceeded`; BusError."""
        if self._used + size > self.reserved:
            await self._extend(self, self._used + size - self.reserved)
        self._used += size

    async def meter_chunks(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """`chunks`, each of them taken before it is passed on."""
        async for chunk in chunks:
            await self.use(len(chunk))
            yield chunk


async def _no_pending_bytes(_: str) -> int:
    """Nothing is promised to anybody."""
    return 0


class OwnerQuotas:
    """`index` tells which jobs wait; `monotonic` in seconds."""

    def __init__(
        self,
        default: OwnerQuota,
        own: Mapping[str, OwnerQuotaOverride],
        index: JobIndex,
        references: Table[AssetReference],
        monotonic: Callable[[], float],
    ) -> None:
        self._default = default
        self._overrides = own
        self._index = index
        self._references = references
        self._monotonic = monotonic
        self._buckets: dict[str, _TokenBucket] = {}
        self._cached_bytes: dict[str, _CachedBytes] = {}
        self._reserved: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self._pending_jobs: defaultdict[str, set[JobKey]] = defaultdict(set)
        self._pending_bytes: PendingBytesSource = _no_pending_bytes
        self.deleting_owners: frozenset[str] = frozenset()
        index.subscribe_changes(self._on_job_changes)

    def for_owner(self, owner: str) -> OwnerQuota:
        """The limits that hold for an owner."""
        own = self._overrides.get(owner)
        return self._default if own is None else _merge_quota(self._default, own)

    def running_limit(self, owner: str) -> int:
        """How many of the owner's jobs may be handed to hosts; 0: any number."""
        return self.for_owner(owner).running

    def check_not_deleting(self, owner: str) -> None:
        """Raises Refused `owner_deleting` while the owner is being deleted."""
        if owner in self.deleting_owners:
            raise ProblemError("owner_deleting", f"{owner} is being deleted: nothing of it is taken until that is done")

    @contextmanager
    def count_submit(self, key: JobKey, *, anew: bool = True) -> Iterator[None]:
        """A job is about to wait; it counts from here on, unless the block raises. `anew`: it is a submit.

        Raises Refused `rate_limited`, `quota_exceeded`, `owner_deleting`, `unavailable`.
        """
        self.check_not_deleting(key.owner)
        limits = self.for_owner(key.owner)
        if limits.submits_per_minute and anew:
            self._take_submit_token(key.owner, limits.submits_per_minute)
        if not limits.waiting:
            yield
            return
        self._check_waiting(key.owner, limits.waiting)
        self._pending_jobs[key.owner].add(key)
        try:
            yield
        except BaseException:
            self._drop_pending_job(key)
            raise

    def _take_submit_token(self, owner: str, per_minute: int) -> None:
        now = self._monotonic()
        bucket = self._buckets.setdefault(owner, _TokenBucket(float(per_minute), now))
        bucket.tokens = min(per_minute, bucket.tokens + (now - bucket.at) * per_minute / _MINUTE_S)
        bucket.at = now
        if bucket.tokens < 1:
            again = ceil((1 - bucket.tokens) * _MINUTE_S / per_minute)
            raise ProblemError(
                "rate_limited", f"at most {per_minute} submits a minute: try again in {again} s", retry_after_s=again
            )
        bucket.tokens -= 1

    def _check_waiting(self, owner: str, most: int) -> None:
        if not self._index.is_caught_up:
            raise ProblemError(
                "unavailable", "the edge still reads its jobs: try again", retry_after_s=WAITING_RETRY_AFTER_S
            )
        if self._waiting[owner] + len(self._pending_jobs[owner]) >= most:
            said = f"{most} jobs of yours wait already, which is the most: let some start, or cancel them"
            raise ProblemError("quota_exceeded", said, retry_after_s=WAITING_RETRY_AFTER_S)

    def _on_job_changes(self, steps: Sequence[RowChange]) -> None:
        for before, after in steps:
            if before is not None:
                self._waiting[before.owner] -= before.status in WAITING_STATUSES
            if after is not None:
                self._waiting[after.owner] += after.status in WAITING_STATUSES
                self._drop_pending_job(after.key)

    def _drop_pending_job(self, key: JobKey) -> None:
        """The index counts it now, or it does not come."""
        coming = self._pending_jobs.get(key.owner)
        if coming is not None:
            coming.discard(key)
            if not coming:
                del self._pending_jobs[key.owner]

    async def bytes_left(self, owner: str) -> int | None:
        """How many more bytes the owner may have, None: any number. Raises Refused `owner_deleting`; BusError."""
        self.check_not_deleting(owner)
        most = self.for_owner(owner).bytes
        if not most:
            return None
        now, held = self._monotonic(), self._cached_bytes.get(owner)
        if held is None or now - held.read_at > BYTES_CACHE_TTL_S:
            rows = await self._references.rows(f"{owner}.")
            held = self._cached_bytes[owner] = _CachedBytes(sum(row.value.bytes for row in rows.values()), now)
        promised = await self._pending_bytes(owner)
        return max(0, most - held.total - promised - self._reserved[owner])

    @asynccontextmanager
    async def reserve(self, owner: str, size: int | None) -> AsyncIterator[QuotaReservation | None]:
        """Room for an upload, kept from all others while the block runs; None where there is no limit.

        `size`: what will come at least, reserved at once; None: nobody knows. Call `changed` inside the block.
        Raises Refused `quota_exceeded`, `owner_deleting`; BusError.
        """
        room = await self.bytes_left(owner)
        if room is None:
            yield None
            return
        reservation = QuotaReservation(owner, self._extend_reservation, 0)
        self._grow_reservation(reservation, size or 0, room)
        try:
            yield reservation
        finally:
            self._reserved[owner] -= reservation.reserved
            if not self._reserved[owner]:
                del self._reserved[owner]

    async def _extend_reservation(self, reservation: QuotaReservation, size: int) -> None:
        room = await self.bytes_left(reservation.owner)
        if room is not None:
            self._grow_reservation(
                reservation, max(size, min(RESERVE_AHEAD_BYTES, room // _RESERVE_AHEAD_DIVISOR)), room
            )

    def _grow_reservation(self, reservation: QuotaReservation, size: int, room: int) -> None:
        """There must be no wait between the look at `room` and this."""
        if size > room:
            raise quota_exceeded(room + reservation.reserved)
        reservation.reserved += size
        self._reserved[reservation.owner] += size

    def set_pending_bytes_source(self, promised: PendingBytesSource) -> None:
        """From now on what is `promised` to an owner's uploads takes room too."""
        self._pending_bytes = promised

    def add_bytes(self, owner: str, size: int) -> None:
        """The owner has so many bytes more."""
        if owner in self._cached_bytes:
            self._cached_bytes[owner].total += size

    def invalidate(self, owner: str) -> None:
        """The owner has less: it is read anew when it is asked for."""
        self._cached_bytes.pop(owner, None)


def quota_exceeded(room: int) -> ProblemError:
    """The refusal of more than `room` bytes."""
    said = f"{room} bytes are left of your quota: delete assets or jobs that you need no more"
    return ProblemError("quota_exceeded", said, retry_after_s=BYTES_RETRY_AFTER_S)


def _merge_quota(default: OwnerQuota, own: OwnerQuotaOverride) -> OwnerQuota:
    given = {name: value for name, value in structs.asdict(own).items() if value is not None}
    return structs.replace(default, **given)


# MERGED edge/services/stream_limits.py: How many streams of one kind a key, and all keys of one owner, may hold open
# at the same time at this edge.


STREAMS_RETRY_AFTER_S = 10


class StreamLimiter:
    """`what`: the streams' name in a refusal."""

    def __init__(self, what: str, per_key: int, per_owner: int) -> None:
        self._stream_kind, self._per_key, self._per_owner = what, per_key, per_owner
        self._of_key: Counter[str] = Counter()
        self._of_owner: Counter[str] = Counter()

    @contextmanager
    def count_stream(self, key: ApiKey) -> Iterator[None]:
        """Count a stream that `key` opened, inside the block. Raises Refused `too_many_connections`."""
        self._check(self._of_key[key.id], self._per_key, f"the key {key.id}")
        self._check(self._of_owner[key.owner], self._per_owner, key.owner)
        self._of_key[key.id] += 1
        self._of_owner[key.owner] += 1
        try:
            yield
        finally:
            _decrement(self._of_key, key.id)
            _decrement(self._of_owner, key.owner)

    def _check(self, count: int, most: int, whose: str) -> None:
        if count >= most:
            said = f"{most} {self._stream_kind} of {whose} are open here, which is the most: close some"
            raise ProblemError("too_many_connections", said, retry_after_s=STREAMS_RETRY_AFTER_S)


def _decrement(counts: Counter[str], name: str) -> None:
    counts[name] -= 1
    if not counts[name]:
        del counts[name]
