"""Limits of one owner: waiting jobs, running jobs, bytes, submits a minute (429 beyond them), open streams, requests.

With one edge the limits are exact: an upload reserves its bytes before they are read. With several edges they are
approximate. An edge learns of waiting jobs and of submits at the other edges through STATE (milliseconds) and reads the
bytes again every 30 s. Requests and open streams are counted by each edge for itself.
"""

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from math import ceil
from typing import Annotated, NamedTuple

from anyio import to_thread
from msgspec import Meta, Struct, structs

from bus.interface import Table
from edge.core.clock import MINUTE_S
from edge.index.index import JobIndex
from edge.index.rows import RowChange
from edge.store.unfinished_uploads import UploadKey, UploadStateStore
from schemas.asset import AssetReference
from schemas.credentials import ApiKey, Scope
from schemas.job import WAITING_STATUSES, JobKey
from schemas.problems import ProblemError
from schemas.settings_schema import unit_of


class RateState(NamedTuple):
    """The events that a rate still allows after one. `reset_s`: until it allows all of them again.

    `retry_after_s`: until the next event is allowed; 0 if this one was.
    """

    limit: int
    remaining: int
    reset_s: int
    retry_after_s: int


class _TokenBucket(Struct):
    """Remaining events at the time `at`, in seconds."""

    tokens: float
    at: float


class RateLimiter:
    """Counts the events of each name. The number of names must be bounded: the bucket of a name is never removed.

    `monotonic`: in seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._buckets: dict[str, _TokenBucket] = {}

    def _refill(self, name: str, per_minute: int) -> _TokenBucket:
        now = self._monotonic()
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = _TokenBucket(float(per_minute), now)
        bucket.tokens = min(per_minute, bucket.tokens + (now - bucket.at) * per_minute / MINUTE_S)
        bucket.at = now
        return bucket

    def count_elsewhere(self, name: str, per_minute: int) -> None:
        """Count an event of `name` that another edge has allowed, also beyond the rate, by up to a minute of events."""
        bucket = self._refill(name, per_minute)
        bucket.tokens = max(-float(per_minute), bucket.tokens - 1)

    def count(self, name: str, per_minute: int) -> RateState:
        """Count an event of `name` if its rate allows it."""
        bucket = self._refill(name, per_minute)
        is_allowed = bucket.tokens >= 1
        if is_allowed:
            bucket.tokens -= 1
        left = bucket.tokens
        return RateState(
            per_minute,
            max(0, int(left)),
            ceil((per_minute - left) * MINUTE_S / per_minute),
            0 if is_allowed else ceil((1 - left) * MINUTE_S / per_minute),
        )


BYTES_CACHE_TTL_S = 30.0
WAITING_RETRY_AFTER_S = 10
BYTES_RETRY_AFTER_S = 60
RESERVE_AHEAD_BYTES = 1024 * 1024  # reserved at a time for a body of unknown size
_RESERVE_AHEAD_DIVISOR = 8  # at most 1/8 of the free bytes is reserved ahead
STREAMS_RETRY_AFTER_S = 10

QuotaAmount = Annotated[int, Meta(ge=0)]


class OwnerQuota(Struct, frozen=True):
    """The `[quotas]` section: limits that apply to each owner."""

    waiting: QuotaAmount = 0
    """Scheduled and queued jobs of one owner; 0: no limit."""
    running: QuotaAmount = 0
    """Jobs of one owner that hosts may take, so this is also the limit of running jobs; 0: no limit."""
    bytes: Annotated[QuotaAmount, unit_of("bytes")] = 0
    """Bytes of one owner's files; 0: no limit. Outputs of jobs count, but are never refused."""
    submits_per_minute: QuotaAmount = 0
    """Submits of one owner; 0: no limit."""


class OwnerQuotaOverride(Struct, frozen=True):
    """Limits of one owner that replace the common ones. None: the common limit applies."""

    waiting: QuotaAmount | None = None
    """Replaces `quotas.waiting` for this owner."""
    running: QuotaAmount | None = None
    """Replaces `quotas.running` for this owner."""
    bytes: Annotated[QuotaAmount, unit_of("bytes")] | None = None
    """Replaces `quotas.bytes` for this owner."""
    submits_per_minute: QuotaAmount | None = None
    """Replaces `quotas.submits_per_minute` for this owner."""


class _CachedBytes(Struct):
    """Bytes of an owner's assets, read at `read_at` (seconds) and updated since."""

    total: int
    read_at: float


class QuotaReservation:
    """Bytes of an owner's quota that are reserved for one upload."""

    def __init__(self, owner: str, extend: Callable[["QuotaReservation", int], Awaitable[None]], reserved: int) -> None:
        self.owner, self.reserved = owner, reserved
        self._extend = extend
        self._used = 0

    async def use(self, size: int) -> None:
        """Use `size` more bytes. Raises ProblemError `quota_exceeded`; BusError."""
        if self._used + size > self.reserved:
            await self._extend(self, self._used + size - self.reserved)
        self._used += size

    async def meter_chunks(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield `chunks`, and count each one before it is yielded."""
        async for chunk in chunks:
            await self.use(len(chunk))
            yield chunk


class OwnerQuotas:
    """Checks and counts the limits of all owners.

    `monotonic`: in seconds. `uploads`: the unfinished uploads, whose bytes count against the limit.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the limits, and what they are counted by
        self,
        default: OwnerQuota,
        overrides: Mapping[str, OwnerQuotaOverride],
        index: JobIndex,
        references: Table[AssetReference],
        monotonic: Callable[[], float],
        uploads: UploadStateStore,
    ) -> None:
        self._default = default
        self._overrides = overrides
        self._index = index
        self._references = references
        self._monotonic = monotonic
        self._submits = RateLimiter(monotonic)
        self._cached_bytes: dict[str, _CachedBytes] = {}
        self._reserved: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self._pending_jobs: defaultdict[str, set[JobKey]] = defaultdict(set)
        self._own_submits: set[JobKey] = set()  # that the index has not shown yet
        self._uploads = uploads
        # Uploads without a length that are being sent, with their offsets before the current request.
        self._growing: dict[UploadKey, int] = {}
        self._grown: Counter[str] = Counter()  # bytes that such uploads have added, by owner
        self._deleting_owners: frozenset[str] = frozenset()
        index.subscribe_changes(self._on_job_changes)

    def for_owner(self, owner: str) -> OwnerQuota:
        """Return the limits of an owner."""
        override = self._overrides.get(owner)
        return self._default if override is None else _merge_quota(self._default, override)

    def running_limit(self, owner: str) -> int:
        """Return how many of the owner's jobs may be published to hosts; 0: no limit."""
        return self.for_owner(owner).running

    def check_not_deleting(self, owner: str) -> None:
        """Check that the owner is not being deleted. Raises ProblemError `owner_deleting`."""
        if owner in self._deleting_owners:
            raise ProblemError(
                "owner_deleting", f"{owner} is being deleted: wait until the deletion is done, then try again"
            )

    def mark_deleting(self, owner: str) -> None:
        """Refuse the owner from now on, because the owner is being deleted."""
        self._deleting_owners |= {owner}

    def unmark_deleting(self, owner: str) -> None:
        """Accept the owner again, because the deletion is done."""
        self._deleting_owners -= {owner}

    def set_deleting(self, owners: Collection[str]) -> None:
        """Refuse exactly these owners, because they are being deleted."""
        self._deleting_owners = frozenset(owners)

    @contextmanager
    def count_submit(self, key: JobKey, *, is_new: bool = True) -> Iterator[None]:
        """Count a job as waiting, unless the block raises. `is_new`: it also counts as a submit.

        Raises ProblemError `rate_limited`, `quota_exceeded`, `owner_deleting`, `unavailable`.
        """
        self.check_not_deleting(key.owner)
        limits = self.for_owner(key.owner)
        if limits.submits_per_minute and is_new:
            self._count_submit_rate(key.owner, limits.submits_per_minute)
        if limits.waiting:
            self._check_waiting(key.owner, limits.waiting)
            self._pending_jobs[key.owner].add(key)
        if is_new:
            self._own_submits.add(key)
        try:
            yield
        except BaseException:
            self._drop_pending_job(key)
            self._own_submits.discard(key)
            raise

    def _count_submit_rate(self, owner: str, per_minute: int) -> None:
        retry_after_s = self._submits.count(owner, per_minute).retry_after_s
        if retry_after_s:
            raise ProblemError(
                "rate_limited",
                f"at most {per_minute} submits a minute: try again in {retry_after_s} s",
                retry_after_s=retry_after_s,
            )

    def _check_waiting(self, owner: str, most: int) -> None:
        if not self._index.is_caught_up:
            raise ProblemError(
                "unavailable", "the edge is still reading its jobs: try again", retry_after_s=WAITING_RETRY_AFTER_S
            )
        if self._waiting[owner] + len(self._pending_jobs[owner]) >= most:
            message = f"{most} jobs of yours are waiting, which is the limit: let some start, or cancel them"
            raise ProblemError("quota_exceeded", message, retry_after_s=WAITING_RETRY_AFTER_S)

    def _on_job_changes(self, changes: Sequence[RowChange]) -> None:
        for before, after in changes:
            if before is not None:
                self._waiting[before.owner] -= before.status in WAITING_STATUSES
            if after is not None:
                self._waiting[after.owner] += after.status in WAITING_STATUSES
                self._drop_pending_job(after.key)
                if before is None and after.key not in self._own_submits:
                    self._count_foreign_submit(after.owner)
                self._own_submits.discard(after.key)

    def _count_foreign_submit(self, owner: str) -> None:
        """Count a job that another edge has accepted; not while the jobs from before this edge's start are read."""
        if self._index.is_caught_up and (per_minute := self.for_owner(owner).submits_per_minute):
            self._submits.count_elsewhere(owner, per_minute)

    def _drop_pending_job(self, key: JobKey) -> None:
        """Stop counting a submitted job: the index counts it now, or the submit failed."""
        pending = self._pending_jobs.get(key.owner)
        if pending is not None:
            pending.discard(key)
            if not pending:
                del self._pending_jobs[key.owner]

    async def bytes_left(self, owner: str) -> int | None:
        """Return the free bytes of the owner; None: no limit.

        Raises ProblemError `owner_deleting`; BusError, StoreError.
        """
        self.check_not_deleting(owner)
        most = self.for_owner(owner).bytes
        if not most:
            return None
        now, stored = self._monotonic(), self._cached_bytes.get(owner)
        if stored is None or now - stored.read_at > BYTES_CACHE_TTL_S:
            rows = await self._references.rows(f"{owner}.")
            stored = self._cached_bytes[owner] = _CachedBytes(sum(row.value.bytes for row in rows.values()), now)
        pending = await self._pending_bytes(owner)
        return max(0, most - stored.total - pending - self._reserved[owner])

    async def _pending_bytes(self, owner: str) -> int:
        """Return the bytes that the owner's unfinished uploads have or will have. Raises StoreError.

        Reserved bytes are not included, except those whose reservation ends while the folder is read.
        """
        grown_before, growing = self._grown[owner], dict(self._growing)
        pending = await to_thread.run_sync(self._uploads.pending_bytes, owner, growing)
        return pending + self._grown[owner] - grown_before

    @asynccontextmanager
    async def reserve(self, owner: str, size: int | None) -> AsyncIterator[QuotaReservation | None]:
        """Reserve bytes for an upload while the block runs; yield None if the owner has no limit.

        `size`: reserved at once; None if unknown. Call `add_bytes` inside the block.
        Raises ProblemError `quota_exceeded`, `owner_deleting`; BusError.
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

    @asynccontextmanager
    async def reserve_growth(
        self, key: UploadKey, durable_offset: Callable[[], int]
    ) -> AsyncIterator[QuotaReservation | None]:
        """Reserve the bytes of an upload without a length as they arrive; yield None if the owner has no limit.

        Bytes that become durable in the block stay reserved until its end, and count as pending only then.
        Raises ProblemError `quota_exceeded`, `owner_deleting`; BusError, StoreError.
        """
        async with self.reserve(key.owner, None) as reservation:
            start = self._growing[key] = durable_offset()
            try:
                yield reservation
            finally:  # no await between this and the end of the reservation
                del self._growing[key]
                self._grown[key.owner] += durable_offset() - start

    async def _extend_reservation(self, reservation: QuotaReservation, size: int) -> None:
        room = await self.bytes_left(reservation.owner)
        if room is not None:
            self._grow_reservation(
                reservation, max(size, min(RESERVE_AHEAD_BYTES, room // _RESERVE_AHEAD_DIVISOR)), room
            )

    def _grow_reservation(self, reservation: QuotaReservation, size: int, room: int) -> None:
        """Reserve `size` more bytes. There must be no await between reading `room` and this call."""
        if size > room:
            raise quota_exceeded(room + reservation.reserved)
        reservation.reserved += size
        self._reserved[reservation.owner] += size

    def add_bytes(self, owner: str, size: int) -> None:
        """Count `size` more bytes of the owner."""
        if owner in self._cached_bytes:
            self._cached_bytes[owner].total += size

    def invalidate(self, owner: str) -> None:
        """Forget the cached bytes of the owner, who has deleted an asset."""
        self._cached_bytes.pop(owner, None)


def quota_exceeded(room: int) -> ProblemError:
    """Return the error for an upload of more than `room` bytes."""
    message = f"{room} bytes are left of your quota: delete assets or jobs that you no longer need"
    return ProblemError("quota_exceeded", message, retry_after_s=BYTES_RETRY_AFTER_S)


def _merge_quota(default: OwnerQuota, override: OwnerQuotaOverride) -> OwnerQuota:
    changes = {name: value for name, value in structs.asdict(override).items() if value is not None}
    return structs.replace(default, **changes)


class RequestLimiter:
    """Limit the requests of one key a minute, at this edge. Keys of runners have no limit: their jobs bound them.

    `per_minute`: 0 is no limit. `monotonic`: in seconds.
    """

    def __init__(self, per_minute: int, monotonic: Callable[[], float]) -> None:
        self._per_minute = per_minute
        self._requests = RateLimiter(monotonic)

    def count(self, key: ApiKey) -> RateState | None:
        """Count a request of `key`; None if it has no limit. The caller refuses it if the state says so."""
        if not self._per_minute or Scope.RUNNER in key.scopes:
            return None
        return self._requests.count(key.id, self._per_minute)


def rate_limited(key: ApiKey, state: RateState) -> ProblemError:
    """Return the error for a request of `key` over the limit."""
    message = f"the key {key.id} may make {state.limit} requests a minute: try again in {state.retry_after_s} s"
    return ProblemError("rate_limited", message, retry_after_s=state.retry_after_s)


class StreamLimiter:
    """Limit the open streams of one key, and of all keys of one owner, at this edge.

    `stream_kind`: the name of the streams in an error.
    """

    def __init__(self, stream_kind: str, per_key: int, per_owner: int) -> None:
        self._stream_kind, self._per_key, self._per_owner = stream_kind, per_key, per_owner
        self._of_key: Counter[str] = Counter()
        self._of_owner: Counter[str] = Counter()

    @contextmanager
    def count_stream(self, key: ApiKey) -> Iterator[None]:
        """Count a stream of `key` while the block runs. Raises ProblemError `too_many_connections`."""
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
            message = f"{most} {self._stream_kind} of {whose} are open, which is the limit: close some"
            raise ProblemError("too_many_connections", message, retry_after_s=STREAMS_RETRY_AFTER_S)


def _decrement(counts: Counter[str], name: str) -> None:
    counts[name] -= 1
    if not counts[name]:
        del counts[name]
