"""Assets of owners: references over the bytes of one shared store. No owner sees another's assets."""

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from msgspec import Struct, structs

from bus.interface import Bus, RevisionConflict, TableRow
from edge.core.clock import Clock, micros
from edge.core.concurrency import translate_errors
from edge.index.index import JobIndex
from edge.index.rows import DEFAULT_PAGE_LIMIT, PAGE_LIMIT, decode_cursor, encode_cursor
from edge.owners.quotas import OwnerQuotas, QuotaReservation
from edge.store.port import AssetStore, StoredAsset
from schemas.asset import AssetReference, Digest, is_digest, reference_key, safe_name
from schemas.host import AssetTombstone
from schemas.problems import ProblemError

TOUCH_INTERVAL = timedelta(hours=1)  # retention counts in days, so not every submit has to write
UNREFERENCED_RETENTION = timedelta(hours=24)  # an asset used this recently is kept even if no job names it
TRASH_RETENTION = timedelta(seconds=60)
ASSET_LIMIT_BYTES = 20 * 1024**3


class AssetRow(Struct, frozen=True):
    """An asset as `GET /v1/assets` lists it."""

    sha256: Digest
    reference: AssetReference


class AssetReferencePage(Struct, frozen=True):
    """A page of assets, newest first. `next_cursor`: None on the last page."""

    assets: tuple[AssetRow, ...]
    next_cursor: str | None


class AssetDeletion(Struct, frozen=True):
    """The result of a deletion. `hosts_pending`: they delete the bytes from their caches before their next job."""

    sha256: Digest
    hosts_pending: tuple[str, ...]


class AssetService:
    """Keeps bytes, references and tombstones consistent. `limit`: size of the largest accepted body in bytes."""

    def __init__(  # noqa: PLR0913, PLR0917 - its services, and three limits
        self,
        bus: Bus,
        store: AssetStore,
        index: JobIndex,
        clock: Clock,
        limit: int = ASSET_LIMIT_BYTES,
        quotas: OwnerQuotas | None = None,
        trash_retention: timedelta = TRASH_RETENTION,
    ) -> None:
        self._bus = bus
        self._store = store
        self._index = index
        self._clock = clock
        self.limit = limit
        self._quotas = quotas
        self._trash_retention = trash_retention
        self._subscribers: list[Callable[[str, Digest], None]] = []

    def subscribe_uploads(self, watcher: Callable[[str, Digest], None]) -> None:
        """Call `watcher` with owner and digest of every asset that this edge stores. It must not block."""
        self._subscribers.append(watcher)

    async def put(  # noqa: PLR0913 - each is one fact of the file
        self,
        owner: str,
        chunks: AsyncIterator[bytes],
        expected: Digest | None,
        name: str,
        media_type: str,
        *,
        result: bool = False,
        size: int | None = None,
        reserved: bool = False,
    ) -> tuple[AssetReference, Digest, bool]:
        """Store a body; return its reference, its digest, and whether it is new to the owner.

        `result`: a job produced it, so no quota applies. `size`: as declared by the client. `reserved`: the caller has
        reserved the bytes. Raises ProblemError `digest_mismatch`, `body_too_large`, `quota_exceeded`,
        `owner_deleting`, `store_full`, `unavailable`.
        """
        with translate_errors():
            async with self._reserve_bytes(owner, expected, size, is_exempt=result or reserved) as reservation:
                metered = chunks if reservation is None else reservation.meter_chunks(chunks)
                stored = await self._store.write(metered, expected, self.limit)
                return await self._register(owner, stored, name, media_type)

    @asynccontextmanager
    async def _reserve_bytes(
        self, owner: str, expected: Digest | None, size: int | None, *, is_exempt: bool
    ) -> AsyncIterator[QuotaReservation | None]:
        """Reserve the bytes of a body; yield None if it needs none, as an asset that the owner has already."""
        quotas = None if is_exempt else self._quotas
        if quotas is None or (expected is not None and await self._reference_row(owner, expected) is not None):
            yield None
            return
        async with quotas.reserve(owner, size) as reservation:
            yield reservation

    async def import_file(
        self, owner: str, path: Path, sha256: Digest, name: str, media_type: str
    ) -> tuple[AssetReference, Digest, bool]:
        """Store a durable local file whose digest is known, as `put` does. The file stays. Raises ProblemError."""
        with translate_errors():
            stored = await self._store.import_file(path, sha256)
        return await self._register(owner, stored, name, media_type)

    async def _register(
        self, owner: str, stored: StoredAsset, name: str, media_type: str
    ) -> tuple[AssetReference, Digest, bool]:
        with translate_errors():
            reference, created = await self._create_reference(
                owner, stored, safe_name(name, stored.sha256[:12]), media_type
            )
            # A deletion may have moved the bytes to the trash after the write and before the reference.
            if await self._store.stat(stored.sha256) is None:
                await self._store.restore(stored.sha256)
            await self._bus.tombstones.delete(stored.sha256)
        if created and self._quotas is not None:
            self._quotas.add_bytes(owner, stored.bytes)
        for watcher in self._subscribers:
            watcher(owner, stored.sha256)
        return reference, stored.sha256, created

    async def _create_reference(
        self, owner: str, stored: StoredAsset, name: str, media_type: str
    ) -> tuple[AssetReference, bool]:
        now, key = self._clock(), reference_key(owner, stored.sha256)
        new = AssetReference(name, stored.bytes, media_type, now, now)
        try:
            await self._bus.asset_references.create(key, new)
        except RevisionConflict:
            row = await self._bus.asset_references.get(key)
            reference = new if row is None else structs.replace(row.value, last_used_at=now)
            await self._bus.asset_references.put(key, reference)
            return reference, row is None
        return new, True

    async def get(self, owner: str, sha256: Digest) -> tuple[AssetReference, StoredAsset]:
        """Return the owner's reference and its stored bytes. Raises ProblemError `not_found`."""
        with translate_errors():
            row = await self._reference_row(owner, sha256)
            stored = None if row is None else await self._store.stat(sha256)
        if row is None or stored is None:
            raise ProblemError("not_found", f"you have no asset sha256:{sha256[:80]}")
        return row.value, stored

    async def touch(self, owner: str, sha256: Digest) -> None:
        """Record that the owner uses the asset now, if it exists; retention counts from the last use."""
        with translate_errors():
            row = await self._reference_row(owner, sha256)
            if row is not None:
                await self._touch_row(owner, sha256, row)

    async def split_present(
        self, owner: str, digests: Iterable[Digest]
    ) -> tuple[tuple[Digest, ...], tuple[Digest, ...]]:
        """Split `digests` into those that the owner has and those that it lacks, without duplicates and in order."""
        with translate_errors():
            rows = {sha256: await self._reference_row(owner, sha256) for sha256 in dict.fromkeys(digests)}
        present = tuple(sha256 for sha256, row in rows.items() if row is not None)
        return present, tuple(sha256 for sha256, row in rows.items() if row is None)

    async def find_missing(self, owner: str, digests: Iterable[Digest]) -> tuple[Digest, ...]:
        """Return the digests that the owner lacks, and touch the others, because a job is about to name them."""
        missing = []
        for sha256 in dict.fromkeys(digests):
            row = await self._reference_row(owner, sha256)
            if row is None:
                missing.append(sha256)
            else:
                await self._touch_row(owner, sha256, row)
        return tuple(missing)

    async def list(self, owner: str, limit: int = DEFAULT_PAGE_LIMIT, cursor: str | None = None) -> AssetReferencePage:
        """Return one page of the owner's assets, newest first. Raises ProblemError."""
        limit = max(1, min(limit, PAGE_LIMIT))
        after = None if cursor is None else decode_cursor(cursor)
        with translate_errors():
            rows = await self._bus.asset_references.rows(f"{owner}.")
        ordered = sorted(
            ((micros(row.value.created_at), key.partition(".")[2], row) for key, row in rows.items()), reverse=True
        )
        found = [row for row in ordered if after is None or row[:2] < after]
        page = tuple(AssetRow(sha256, row.value) for _, sha256, row in found[:limit])
        has_more = len(found) > limit
        return AssetReferencePage(page, encode_cursor(*found[limit - 1][:2]) if has_more else None)

    async def delete(self, owner: str, sha256: Digest) -> AssetDeletion:
        """Delete the owner's reference, and the bytes if nothing else references them.

        Raises ProblemError `not_found`, or `asset_in_use` while an unfinished job names the asset.
        """
        with translate_errors():
            if await self._reference_row(owner, sha256) is None:
                raise ProblemError("not_found", f"you have no asset sha256:{sha256[:80]}")
            await self._index.wait_for_own_writes(owner)
            jobs = await self._index.find_unfinished_jobs_with_asset(owner, sha256)
            if jobs:
                named = ", ".join(job.id for job in jobs[:3])
                raise ProblemError(
                    "asset_in_use", f"{len(jobs)} job(s) still need it ({named}): cancel them or let them end"
                )
            return await self.drop_reference(owner, sha256)

    async def drop_unreferenced(
        self, owner: str, digests: Collection[Digest], *, only_unused: bool = False
    ) -> Sequence[Digest]:
        """Drop references that no job of the owner names; return the dropped digests.

        `only_unused`: keep those used within UNREFERENCED_RETENTION. Raises BusError.
        """
        dropped = []
        for sha256 in digests:
            row = await self._reference_row(owner, sha256)
            is_recent = (
                row is not None and only_unused and self._clock() - row.value.last_used_at < UNREFERENCED_RETENTION
            )
            if row is not None and not is_recent and not await self._index.find_jobs_with_asset(owner, sha256):
                await self.drop_reference(owner, sha256)
                dropped.append(sha256)
        return dropped

    async def sweep_trash(self) -> int:
        """Restore trashed files that are referenced, and erase the others after a minute. Return how many changed."""
        moved = 0
        for sha256 in (await self._store.survey()).trashed:
            if await self._is_referenced(sha256):
                moved += await self._store.restore(sha256)
                await self._bus.tombstones.delete(sha256)
                continue
            row = await self._bus.tombstones.get(sha256)
            if row is None:  # the edge that trashed it died before it wrote the tombstone
                await self._bus.tombstones.put(sha256, AssetTombstone(sha256, self._clock()))
            elif self._clock() - row.value.at >= self._trash_retention:
                moved += await self._store.erase(sha256)
        return moved

    async def drop_reference(self, owner: str, sha256: Digest) -> AssetDeletion:
        """Drop a reference even if a job of its owner names it. Raises BusError, StoreError."""
        await self._bus.asset_references.delete(reference_key(owner, sha256))
        if self._quotas is not None:
            self._quotas.invalidate(owner)
        if await self._is_referenced(sha256):
            return AssetDeletion(sha256, ())
        # The tombstone first: if the edge dies in between, hosts drop cached bytes, which they can fetch again.
        await self._bus.tombstones.put(sha256, AssetTombstone(sha256, self._clock()))
        await self._store.trash(sha256)
        if await self._is_referenced(sha256):
            await self._store.restore(sha256)
            await self._bus.tombstones.delete(sha256)
            return AssetDeletion(sha256, ())
        return AssetDeletion(sha256, tuple(sorted(await self._bus.capabilities.rows())))

    async def _is_referenced(self, sha256: Digest) -> bool:
        """Return whether an owner's reference or an unfinished job names the bytes."""
        if await self._index.find_unfinished_jobs_with_asset(None, sha256):
            return True
        return bool(await self._bus.asset_references.keys(f"*.{sha256}"))

    async def _reference_row(self, owner: str, sha256: Digest) -> TableRow[AssetReference] | None:
        return await self._bus.asset_references.get(reference_key(owner, sha256)) if is_digest(sha256) else None

    async def _touch_row(self, owner: str, sha256: Digest, row: TableRow[AssetReference]) -> None:
        now = self._clock()
        if now - row.value.last_used_at < TOUCH_INTERVAL:
            return
        # On a conflict another edge has touched the row, or a deletion has won. Both are fine.
        try:
            await self._bus.asset_references.update(
                reference_key(owner, sha256), structs.replace(row.value, last_used_at=now), row.revision
            )
        except RevisionConflict:
            return
