"""A job's inputs: from the host's cache, or from the edge once however many jobs want them."""

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from anyio import Lock, to_thread

from runner.assets import AssetClient
from runner.cache import Shelf
from runner.supplies import About, Supplies
from schemas.asset import Digest
from schemas.job import File

_KNOWN = 10_000  # assets of which is remembered what they are


class Fetch(Protocol):
    """Where assets come from. Both raise runner.supplies.SuppliesError."""

    async def about(self, owner: str, sha256: Digest) -> About:
        """What it is."""
        ...

    async def get(self, owner: str, sha256: Digest, into: Path) -> None:
        """Bring it to `into`, going on with what is there already; verified when this returns."""
        ...


class Cache:
    """LRU by digest in `folder`. Shared by all jobs of the runner, and by no other process.

    Bytes are the same whoever owns them: that this job's owner may see them was checked by the edge at submit.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        fetch: Fetch,
        *,
        reserve_bytes: int = 0,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._shelf = Shelf(folder, max_bytes, reserve_bytes, now_ns)
        self._fetch = fetch
        self._locks: dict[Digest, Lock] = {}
        self._pins: Counter[Digest] = Counter()  # how many tasks are at a digest: it is not evicted meanwhile
        self._known: dict[tuple[str, Digest], About] = {}
        self._coming: dict[Digest, int] = {}  # downloads under way, and their sizes in bytes
        self._room = Lock()

    async def stage(self, owner: str, sha256: Digest, to: Path) -> None:
        """Put the file at `to`, read-only; it counts as used as long as `to` exists.

        Raises what Fetch raises, and OSError (DiskShort where the disk has no room).
        """
        async with self._alone(sha256):
            if not await to_thread.run_sync(self._shelf.holds, sha256):
                await self._download(owner, sha256)
            await to_thread.run_sync(self._shelf.lend, sha256, to)

    async def fetch(self, owner: str, sha256: Digest) -> None:
        """Have it here; it may be evicted again before anybody needs it. Raises as `stage` does."""
        async with self._alone(sha256):
            if not await to_thread.run_sync(self._shelf.holds, sha256):
                await self._download(owner, sha256)

    async def drop(self, digests: Iterable[Digest]) -> None:
        """Forget deleted assets; waits for whoever is fetching one. A running job keeps what it has.

        All that were ever deleted come here again and again: what is not here costs nothing.
        """
        here = await to_thread.run_sync(self._shelf.digests)
        here |= self._locks.keys() | {known for _, known in self._known}
        for sha256 in here.intersection(digests):
            async with self._alone(sha256):
                await to_thread.run_sync(self._shelf.drop, sha256)
                self._known = {key: about for key, about in self._known.items() if key[1] != sha256}

    async def suffix(self, owner: str, sha256: Digest) -> str:
        """Of the asset's name at this owner. Raises what Fetch raises."""
        return (await self._about(owner, sha256)).suffix

    async def _about(self, owner: str, sha256: Digest) -> About:
        """Asked for once: a name is given with the first upload, and stays."""
        known = self._known.get((owner, sha256))
        if known is None:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            known = self._known[owner, sha256] = await self._fetch.about(owner, sha256)
        return known

    async def _download(self, owner: str, sha256: Digest) -> None:
        self._coming[sha256] = (await self._about(owner, sha256)).bytes
        try:
            async with self._room:
                await to_thread.run_sync(self._shelf.make_room, dict(self._coming), set(self._pins))
            await self._fetch.get(owner, sha256, self._shelf.part(sha256))
            await to_thread.run_sync(self._shelf.add, sha256)
        finally:
            del self._coming[sha256]

    @asynccontextmanager
    async def _alone(self, sha256: Digest) -> AsyncIterator[None]:
        self._pins[sha256] += 1
        try:
            async with self._locks.setdefault(sha256, Lock()):
                yield
        finally:
            self._pins[sha256] -= 1
            if not self._pins[sha256]:
                del self._pins[sha256], self._locks[sha256]


class EdgeSupplies(Supplies):
    """What the execution uses: inputs through the cache, outputs straight to the edge."""

    def __init__(self, cache: Cache, client: AssetClient) -> None:
        self._cache = cache
        self._client = client

    async def fetch(self, owner: str, sha256: Digest) -> None:
        await self._cache.fetch(owner, sha256)

    async def stage(self, owner: str, sha256: Digest, to: Path) -> None:
        await self._cache.stage(owner, sha256, to)

    async def suffix(self, owner: str, sha256: Digest) -> str:
        return await self._cache.suffix(owner, sha256)

    async def keep(self, owner: str, path: Path, name: str) -> File:
        return await self._client.put(owner, path, name)
