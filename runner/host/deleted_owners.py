"""Deleted owners: their caches on this host go at once, and their reused containers with them.

The edge writes a row of DELETED_OWNERS when an owner's jobs have ended. A host reads the rows before it claims its
first job, and again at every cleanup. What it has done is in a file: the caches of a new owner of the same name stay.
"""

from datetime import datetime

import anyio.to_thread
import msgspec

from bus.secret_files import TRAVERSE_ONLY_MODE, atomic_write, make_private_folder
from runner.assets.cache_store import CacheStore
from runner.assets.volume_store import read_mount_notes
from runner.claiming.warm_pool import WarmPool
from runner.context import RunnerContext

DONE_FILE = "deleted_owners.json"


class DeletedOwners:
    """Removes what this host keeps between the jobs of owners that were deleted."""

    def __init__(self, context: RunnerContext, warm_pool: WarmPool) -> None:
        self._context = context
        self._warm_pool = warm_pool
        self._done: dict[str, datetime] | None = None  # None: the file is not read yet

    async def apply(self) -> None:
        """Read the rows, and remove what is left of their owners. Raises BusError.

        What a job of such an owner uses stays until a later call: the job ends first.
        """
        folders = self._context.folders
        if folders is None:
            return
        rows = {owner: row.value.at for owner, row in (await self._context.bus.deleted_owners.rows()).items()}
        store = folders.caches
        try:
            before = self._done if self._done is not None else await anyio.to_thread.run_sync(_read_done, store)
            done = {owner: at for owner, at in before.items() if rows.get(owner) == at}
            for owner in sorted(rows.keys() - done.keys()):
                is_unused = await self._warm_pool.evict_owner(owner)
                is_empty = await anyio.to_thread.run_sync(self._remove_caches, store, owner)
                if is_unused and is_empty:
                    done[owner] = rows[owner]
            if done != before:
                await anyio.to_thread.run_sync(_write_done, store, done)
            self._done = done
        except OSError as error:
            self._context.log.warning("operation_failed", operation="remove_deleted_owners", error=str(error))

    def _remove_caches(self, store: CacheStore, owner: str) -> bool:
        """Remove the owner's caches that no container has; return whether none is left. Blocking."""
        with store.lock:
            used = {key for note in read_mount_notes(self._context.jobs_dir) for key in note.caches}
            found = [cache for cache in store.list() if cache.owner == owner]
            for cache in found:
                if cache.folder.name not in used:
                    store.remove(cache)
                    self._context.log.info("cache_swept", cache=cache.folder.name, reason="owner_deleted")
        return used.isdisjoint(cache.folder.name for cache in found)


def _read_done(store: CacheStore) -> dict[str, datetime]:
    """Return when the owners were deleted that are done here. Without the file, their caches are removed again."""
    try:
        return msgspec.json.decode((store.folder / DONE_FILE).read_bytes(), type=dict[str, datetime])
    except (FileNotFoundError, msgspec.DecodeError):
        return {}


def _write_done(store: CacheStore, done: dict[str, datetime]) -> None:
    make_private_folder(store.folder, TRAVERSE_ONLY_MODE)
    atomic_write(store.folder / DONE_FILE, msgspec.json.encode(done))
