"""Assets as owners see them: references over the store's bytes, one store, none sees another's (DESIGN 7)."""

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from msgspec import Struct, structs

from bus.port import Bus, Conflict, Row
from edge.services.clock import Clock, micros
from edge.services.index import Index
from edge.services.pages import PAGE, PAGE_MAX, read_cursor, write_cursor
from edge.services.quotas import Quotas, Reservation
from edge.services.refusals import refusing
from edge.store.port import AssetStore, Stored
from schemas.asset import Digest, Reference, is_digest, reference_key, safe_name
from schemas.errors import Refused
from schemas.host import Tombstone

TOUCH_EVERY = timedelta(hours=1)  # retention looks at whole days, so a submit need not write each time
UNTOUCHED = timedelta(hours=24)  # an asset this young is kept although no job names it
TRASH_FOR = timedelta(seconds=60)
LIMIT = 20 * 1024**3  # bytes


class AssetRow(Struct, frozen=True):
    """One row of `GET /v1/assets`."""

    sha256: Digest
    reference: Reference


class AssetPage(Struct, frozen=True):
    """One page, newest first; `next_cursor` None: the last one."""

    assets: tuple[AssetRow, ...]
    next_cursor: str | None


class Deleted(Struct, frozen=True):
    """What a deletion did. `hosts_pending` drop the bytes from their caches before they next take work."""

    sha256: Digest
    hosts_pending: tuple[str, ...]


class Assets:
    """Bytes, references and tombstones together. `limit`: the largest body taken, in bytes."""

    def __init__(  # noqa: PLR0913, PLR0917 - what it works with, and three bounds
        self,
        bus: Bus,
        store: AssetStore,
        index: Index,
        clock: Clock,
        limit: int = LIMIT,
        quotas: Quotas | None = None,
        trash_for: timedelta = TRASH_FOR,
    ) -> None:
        self._bus = bus
        self._store = store
        self._index = index
        self._clock = clock
        self.limit = limit
        self._quotas = quotas
        self._trash_for = trash_for
        self._watchers: list[Callable[[str, Digest], None]] = []

    def watch(self, watcher: Callable[[str, Digest], None]) -> None:
        """Call `watcher` with owner and digest of every upload that was taken here. It must not block."""
        self._watchers.append(watcher)

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
    ) -> tuple[Reference, Digest, bool]:
        """Take a body; the reference, its digest, and whether it is new to the owner.

        `result`: a job made it, so no quota keeps it out. `size`: what the client says it is. `reserved`: its room was
        reserved before it came. Raises Refused `digest_mismatch`, `body_too_large`,
        `quota_exceeded`, `owner_deleting`, `store_full`, `unavailable`.
        """
        with refusing():
            async with self._reserving(owner, expected, size, free=result or reserved) as room:
                taken = chunks if room is None else room.metered(chunks)
                stored = await self._store.write(taken, expected, self.limit)
                return await self._kept(owner, stored, name, media_type)

    @asynccontextmanager
    async def _reserving(
        self, owner: str, expected: Digest | None, size: int | None, *, free: bool
    ) -> AsyncIterator[Reservation | None]:
        """The room of a body; None where it needs none: what the owner has already takes none."""
        quotas = None if free else self._quotas
        if quotas is None or (expected is not None and await self._row(owner, expected) is not None):
            yield None
            return
        async with quotas.reserving(owner, size) as room:
            yield room

    async def adopt(
        self, owner: str, path: Path, sha256: Digest, name: str, media_type: str
    ) -> tuple[Reference, Digest, bool]:
        """As `put`, of a durable file on this machine whose digest was computed as it came. The file stays."""
        with refusing():
            stored = await self._store.adopt(path, sha256)
        return await self._kept(owner, stored, name, media_type)

    async def _kept(self, owner: str, stored: Stored, name: str, media_type: str) -> tuple[Reference, Digest, bool]:
        with refusing():
            reference, created = await self._refer(owner, stored, safe_name(name, stored.sha256[:12]), media_type)
            # A deletion may have moved the bytes away between the two lines above.
            if await self._store.stat(stored.sha256) is None:
                await self._store.restore(stored.sha256)
            await self._bus.tombstones.delete(stored.sha256)
        if created and self._quotas is not None:
            self._quotas.changed(owner, stored.bytes)
        for watcher in self._watchers:
            watcher(owner, stored.sha256)
        return reference, stored.sha256, created

    async def _refer(self, owner: str, stored: Stored, name: str, media_type: str) -> tuple[Reference, bool]:
        now, key = self._clock(), reference_key(owner, stored.sha256)
        fresh = Reference(name, stored.bytes, media_type, now, now)
        try:
            await self._bus.assets.create(key, fresh)
        except Conflict:
            row = await self._bus.assets.get(key)
            kept = fresh if row is None else structs.replace(row.value, touched=now)
            await self._bus.assets.put(key, kept)
            return kept, row is None
        return fresh, True

    async def head(self, owner: str, sha256: Digest) -> tuple[Reference, Stored]:
        """The owner's reference and where its bytes are. Raises Refused `not_found`."""
        with refusing():
            row = await self._row(owner, sha256)
            stored = None if row is None else await self._store.stat(sha256)
        if row is None or stored is None:
            raise Refused("not_found", f"you have no asset sha256:{sha256[:80]}")
        return row.value, stored

    async def touch(self, owner: str, sha256: Digest) -> None:
        """The owner used the asset now: retention counts from here. Nothing happens when there is none."""
        with refusing():
            row = await self._row(owner, sha256)
            if row is not None:
                await self._touched(owner, sha256, row)

    async def check(self, owner: str, digests: Iterable[Digest]) -> tuple[tuple[Digest, ...], tuple[Digest, ...]]:
        """Which of `digests` the owner has, and which not, each once and in the order given."""
        with refusing():
            rows = {sha256: await self._row(owner, sha256) for sha256 in dict.fromkeys(digests)}
        present = tuple(sha256 for sha256, row in rows.items() if row is not None)
        return present, tuple(sha256 for sha256, row in rows.items() if row is None)

    async def missing(self, owner: str, digests: Iterable[Digest]) -> tuple[Digest, ...]:
        """What of `digests` a submit cannot have. What it can have is touched: a job is about to name it."""
        lacking = []
        for sha256 in dict.fromkeys(digests):
            row = await self._row(owner, sha256)
            if row is None:
                lacking.append(sha256)
            else:
                await self._touched(owner, sha256, row)
        return tuple(lacking)

    async def list(self, owner: str, limit: int = PAGE, cursor: str | None = None) -> AssetPage:
        """One page of the owner's assets, newest first. Raises Refused."""
        limit = max(1, min(limit, PAGE_MAX))
        behind = None if cursor is None else read_cursor(cursor)
        with refusing():
            rows = await self._bus.assets.rows(f"{owner}.")
        placed = sorted(
            ((micros(row.value.created), key.partition(".")[2], row) for key, row in rows.items()), reverse=True
        )
        found = [place for place in placed if behind is None or place[:2] < behind]
        page = tuple(AssetRow(sha256, row.value) for _, sha256, row in found[:limit])
        more = len(found) > limit
        return AssetPage(page, write_cursor(*found[limit - 1][:2]) if more else None)

    async def delete(self, owner: str, sha256: Digest) -> Deleted:
        """Drop the owner's reference, and the bytes when nothing else names them.

        Raises Refused `not_found`, or `asset_in_use` while a job that has not ended names it.
        """
        with refusing():
            if await self._row(owner, sha256) is None:
                raise Refused("not_found", f"you have no asset sha256:{sha256[:80]}")
            await self._index.own_writes(owner)
            jobs = await self._index.living_jobs_naming(owner, sha256)
            if jobs:
                named = ", ".join(job.id for job in jobs[:3])
                raise Refused(
                    "asset_in_use", f"{len(jobs)} job(s) still need it ({named}): cancel them or let them end"
                )
            return await self.drop(owner, sha256)

    async def release(
        self, owner: str, digests: Collection[Digest], *, touched_before: bool = False
    ) -> Sequence[Digest]:
        """Drop references of the owner that no job of his names any more; what was dropped.

        `touched_before`: only those not touched for UNTOUCHED. Raises BusError.
        """
        dropped = []
        for sha256 in digests:
            row = await self._row(owner, sha256)
            young = row is not None and touched_before and self._clock() - row.value.touched < UNTOUCHED
            if row is not None and not young and not await self._index.jobs_naming(owner, sha256):
                await self.drop(owner, sha256)
                dropped.append(sha256)
        return dropped

    async def sweep(self) -> int:
        """Judge what lies in the trash: back when something names it, else gone after a minute; how many were moved."""
        moved = 0
        for sha256 in (await self._store.survey()).trashed:
            if await self._named(sha256):
                moved += await self._store.restore(sha256)
                await self._bus.tombstones.delete(sha256)
                continue
            row = await self._bus.tombstones.get(sha256)
            if row is None:  # the edge that trashed it died before it wrote the tombstone
                await self._bus.tombstones.put(sha256, Tombstone(sha256, self._clock()))
            elif self._clock() - row.value.at >= self._trash_for:
                moved += await self._store.erase(sha256)
        return moved

    async def drop(self, owner: str, sha256: Digest) -> Deleted:
        """Drop a reference, whoever of its owner's jobs still names it. Raises BusError, StoreError."""
        await self._bus.assets.delete(reference_key(owner, sha256))
        if self._quotas is not None:
            self._quotas.forget(owner)
        if await self._named(sha256):
            return Deleted(sha256, ())
        # The tombstone first: should the edge die in between, caches drop bytes that are fetched again if still wanted.
        await self._bus.tombstones.put(sha256, Tombstone(sha256, self._clock()))
        await self._store.trash(sha256)
        if await self._named(sha256):
            await self._store.restore(sha256)
            await self._bus.tombstones.delete(sha256)
            return Deleted(sha256, ())
        return Deleted(sha256, tuple(sorted(await self._bus.offers.rows())))

    async def _named(self, sha256: Digest) -> bool:
        """Whether any owner's reference or living job names the bytes."""
        if await self._index.living_jobs_naming(None, sha256):
            return True
        return bool(await self._bus.assets.keys(f"*.{sha256}"))

    async def _row(self, owner: str, sha256: Digest) -> Row[Reference] | None:
        return await self._bus.assets.get(reference_key(owner, sha256)) if is_digest(sha256) else None

    async def _touched(self, owner: str, sha256: Digest, row: Row[Reference]) -> None:
        now = self._clock()
        if now - row.value.touched < TOUCH_EVERY:
            return
        # A race with another touch is won by either; one with a deletion by the deletion.
        try:
            await self._bus.assets.update(
                reference_key(owner, sha256), structs.replace(row.value, touched=now), row.revision
            )
        except Conflict:
            return
