"""Assets as owners see them: references over the store's bytes, one store, none sees another's (DESIGN 7)."""

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from msgspec import Struct, structs

from bus.interface import Bus, RevisionConflict, TableRow
from edge.core.clock import Clock, micros
from edge.core.error_handling import translate_errors
from edge.index.index import JobIndex
from edge.index.paging import DEFAULT_PAGE_LIMIT, PAGE_LIMIT, decode_cursor, encode_cursor
from edge.owners.quotas import OwnerQuotas, QuotaReservation
from edge.store.port import AssetStore, StoredAsset
from schemas.asset import AssetReference, Digest, is_digest, reference_key, safe_name
from schemas.host import AssetTombstone
from schemas.problems import ProblemError

TOUCH_INTERVAL = timedelta(hours=1)  # retention looks at whole days, so a submit need not write each time
UNREFERENCED_RETENTION = timedelta(hours=24)  # an asset this young is kept although no job names it
TRASH_RETENTION = timedelta(seconds=60)
ASSET_LIMIT_BYTES = 20 * 1024**3  # bytes


class AssetRow(Struct, frozen=True):
    """One row of `GET /v1/assets`."""

    sha256: Digest
    reference: AssetReference


class AssetReferencePage(Struct, frozen=True):
    """One page, newest first; `next_cursor` None: the last one."""

    assets: tuple[AssetRow, ...]
    next_cursor: str | None


class AssetDeletion(Struct, frozen=True):
    """What a deletion did. `hosts_pending` drop the bytes from their caches before they next take work."""

    sha256: Digest
    hosts_pending: tuple[str, ...]


class AssetService:
    """Bytes, references and tombstones together. `limit`: the largest body taken, in bytes."""

    def __init__(  # noqa: PLR0913, PLR0917 - what it works with, and three bounds
        self,
        bus: Bus,
        store: AssetStore,
        index: JobIndex,
        clock: Clock,
        limit: int = ASSET_LIMIT_BYTES,
        quotas: OwnerQuotas | None = None,
        trash_for: timedelta = TRASH_RETENTION,
    ) -> None:
        self._bus = bus
        self._store = store
        self._index = index
        self._clock = clock
        self.limit = limit
        self._quotas = quotas
        self._trash_for = trash_for
        self._subscribers: list[Callable[[str, Digest], None]] = []

    def subscribe_uploads(self, watcher: Callable[[str, Digest], None]) -> None:
        """Call `watcher` with owner and digest of every upload that was taken here. It must not block."""
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
        """Take a body; the reference, its digest, and whether it is new to the owner.

        `result`: a job made it, so no quota keeps it out. `size`: what the client says it is. `reserved`: its room was
        reserved before it came. Raises Refused `digest_mismatch`, `body_too_large`,
        `quota_exceeded`, `owner_deleting`, `store_full`, `unavailable`.
        """
        with translate_errors():
            async with self._reserve_bytes(owner, expected, size, free=result or reserved) as room:
                taken = chunks if room is None else room.meter_chunks(chunks)
                stored = await self._store.write(taken, expected, self.limit)
                return await self._register(owner, stored, name, media_type)

    @asynccontextmanager
    async def _reserve_bytes(
        self, owner: str, expected: Digest | None, size: int | None, *, free: bool
    ) -> AsyncIterator[QuotaReservation | None]:
        """The room of a body; None where it needs none: what the owner has already takes none."""
        quotas = None if free else self._quotas
        if quotas is None or (expected is not None and await self._reference_row(owner, expected) is not None):
            yield None
            return
        async with quotas.reserve(owner, size) as room:
            yield room

    async def import_file(
        self, owner: str, path: Path, sha256: Digest, name: str, media_type: str
    ) -> tuple[AssetReference, Digest, bool]:
        """As `put`, of a durable file on this machine whose digest was computed as it came. The file stays."""
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
            # A deletion may have moved the bytes away between the two lines above.
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
        fresh = AssetReference(name, stored.bytes, media_type, now, now)
        try:
            await self._bus.asset_references.create(key, fresh)
        except RevisionConflict:
            row = await self._bus.asset_references.get(key)
            kept = fresh if row is None else structs.replace(row.value, last_used_at=now)
            await self._bus.asset_references.put(key, kept)
            return kept, row is None
        return fresh, True

    async def get(self, owner: str, sha256: Digest) -> tuple[AssetReference, StoredAsset]:
        """The owner's reference and where its bytes are. Raises Refused `not_found`."""
        with translate_errors():
            row = await self._reference_row(owner, sha256)
            stored = None if row is None else await self._store.stat(sha256)
        if row is None or stored is None:
            raise ProblemError("not_found", f"you have no asset sha256:{sha256[:80]}")
        return row.value, stored

    async def touch(self, owner: str, sha256: Digest) -> None:
        """The owner used the asset now: retention counts from here. Nothing happens when there is none."""
        with translate_errors():
            row = await self._reference_row(owner, sha256)
            if row is not None:
                await self._touch_row(owner, sha256, row)

    async def split_present(
        self, owner: str, digests: Iterable[Digest]
    ) -> tuple[tuple[Digest, ...], tuple[Digest, ...]]:
        """Which of `digests` the owner has, and which not, each once and in the order given."""
        with translate_errors():
            rows = {sha256: await self._reference_row(owner, sha256) for sha256 in dict.fromkeys(digests)}
        present = tuple(sha256 for sha256, row in rows.items() if row is not None)
        return present, tuple(sha256 for sha256, row in rows.items() if row is None)

    async def find_missing(self, owner: str, digests: Iterable[Digest]) -> tuple[Digest, ...]:
        """What of `digests` a submit cannot have. What it can have is touched: a job is about to name it."""
        lacking = []
        for sha256 in dict.fromkeys(digests):
            row = await self._reference_row(owner, sha256)
            if row is None:
                lacking.append(sha256)
            else:
                await self._touch_row(owner, sha256, row)
        return tuple(lacking)

    async def list(self, owner: str, limit: int = DEFAULT_PAGE_LIMIT, cursor: str | None = None) -> AssetReferencePage:
        """One page of the owner's assets, newest first. Raises Refused."""
        limit = max(1, min(limit, PAGE_LIMIT))
        behind = None if cursor is None else decode_cursor(cursor)
        with translate_errors():
            rows = await self._bus.asset_references.rows(f"{owner}.")
        placed = sorted(
            ((micros(row.value.created_at), key.partition(".")[2], row) for key, row in rows.items()), reverse=True
        )
        found = [place for place in placed if behind is None or place[:2] < behind]
        page = tuple(AssetRow(sha256, row.value) for _, sha256, row in found[:limit])
        more = len(found) > limit
        return AssetReferencePage(page, encode_cursor(*found[limit - 1][:2]) if more else None)

    async def delete(self, owner: str, sha256: Digest) -> AssetDeletion:
        """Drop the owner's reference, and the bytes when nothing else names them.

        Raises Refused `not_found`, or `asset_in_use` while a job that has not ended names it.
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
        self, owner: str, digests: Collection[Digest], *, touched_before: bool = False
    ) -> Sequence[Digest]:
        """Drop references of the owner that no job of his names any more; what was dropped.

        `touched_before`: only those not touched for UNTOUCHED. Raises BusError.
        """
        dropped = []
        for sha256 in digests:
            row = await self._reference_row(owner, sha256)
            young = (
                row is not None and touched_before and self._clock() - row.value.last_used_at < UNREFERENCED_RETENTION
            )
            if row is not None and not young and not await self._index.find_jobs_with_asset(owner, sha256):
                await self.drop_reference(owner, sha256)
                dropped.append(sha256)
        return dropped

    async def sweep_trash(self) -> int:
        """Judge what lies in the trash: back when something names it, else gone after a minute; how many were moved."""
        moved = 0
        for sha256 in (await self._store.survey()).trashed:
            if await self._is_referenced(sha256):
                moved += await self._store.restore(sha256)
                await self._bus.tombstones.delete(sha256)
                continue
            row = await self._bus.tombstones.get(sha256)
            if row is None:  # the edge that trashed it died before it wrote the tombstone
                await self._bus.tombstones.put(sha256, AssetTombstone(sha256, self._clock()))
            elif self._clock() - row.value.at >= self._trash_for:
                moved += await self._store.erase(sha256)
        return moved

    async def drop_reference(self, owner: str, sha256: Digest) -> AssetDeletion:
        """Drop a reference, whoever of its owner's jobs still names it. Raises BusError, StoreError."""
        await self._bus.asset_references.delete(reference_key(owner, sha256))
        if self._quotas is not None:
            self._quotas.invalidate(owner)
        if await self._is_referenced(sha256):
            return AssetDeletion(sha256, ())
        # The tombstone first: should the edge die in between, caches drop bytes that are fetched again if still wanted.
        await self._bus.tombstones.put(sha256, AssetTombstone(sha256, self._clock()))
        await self._store.trash(sha256)
        if await self._is_referenced(sha256):
            await self._store.restore(sha256)
            await self._bus.tombstones.delete(sha256)
            return AssetDeletion(sha256, ())
        return AssetDeletion(sha256, tuple(sorted(await self._bus.capabilities.rows())))

    async def _is_referenced(self, sha256: Digest) -> bool:
        """Whether any owner's reference or living job names the bytes."""
        if await self._index.find_unfinished_jobs_with_asset(None, sha256):
            return True
        return bool(await self._bus.asset_references.keys(f"*.{sha256}"))

    async def _reference_row(self, owner: str, sha256: Digest) -> TableRow[AssetReference] | None:
        return await self._bus.asset_references.get(reference_key(owner, sha256)) if is_digest(sha256) else None

    async def _touch_row(self, owner: str, sha256: Digest, row: TableRow[AssetReference]) -> None:
        now = self._clock()
        if now - row.value.last_used_at < TOUCH_INTERVAL:
            return
        # A race with another touch is won by either; one with a deletion by the deletion.
        try:
            await self._bus.asset_references.update(
                reference_key(owner, sha256), structs.replace(row.value, last_used_at=now), row.revision
            )
        except RevisionConflict:
            return
