"""The limits of caches: while a job runs, between two jobs of a container, and when they are unused. Blocking."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from runner.assets.cache_store import CacheStore, StoredCache
from runner.assets.volume_store import read_mount_note, read_mount_notes
from runner.engines.port import MIB
from runner.execution.disk_usage import MAX_ENTRIES, DiskLimit, DiskUse, disk_limit, measure_disk_use

CACHE_REMEDY = "write less, or raise max_mb in the image's endpoint.toml"
GROWTH_FACTOR = 2  # a running job may fill a cache up to this multiple of max_mb; more than max_mb is not kept


class CacheLimit(DiskLimit, frozen=True):
    """The limit of a cache while a job runs. `name`, `max_mb`: as in endpoint.toml."""

    name: str
    max_mb: int

    def explain_excess(self, use: DiskUse) -> str | None:
        if use.bytes <= self.bytes and use.entries <= self.entries and not use.too_deep:
            return None
        return f"the job filled its cache {self.name} far beyond max_mb = {self.max_mb}: {CACHE_REMEDY}"


def caches_of(store: CacheStore, container: Path) -> list[StoredCache]:
    """Return the caches that the container in this folder has."""
    return [cache for key in read_mount_note(container).caches if (cache := store.find(key)) is not None]


def running_limit(cache: StoredCache) -> CacheLimit:
    """Return the limit of a cache while a job runs."""
    plain = disk_limit(GROWTH_FACTOR * cache.max_mb)
    entries = plain.entries if plain else MAX_ENTRIES
    return CacheLimit(GROWTH_FACTOR * cache.max_mb * MIB, entries, cache.name, cache.max_mb)


def is_over(cache: StoredCache) -> bool:
    """Return whether the cache holds more than is kept."""
    use = measure_disk_use(cache.folder)
    return use.bytes > cache.max_mb * MIB or use.too_deep


def find_excess(store: CacheStore, container: Path) -> str | None:
    """Return which cache of a container holds more than is kept; None if none does."""
    over = next((cache for cache in caches_of(store, container) if is_over(cache)), None)
    return f"its cache {over.name} has more than {over.max_mb} MiB" if over else None


class SweptCache(NamedTuple):
    """A cache that was emptied (`over_limit`) or removed (`age`, `total`: all together were too many)."""

    key: str
    why: Literal["over_limit", "age", "total"]


def sweep_caches(store: CacheStore, jobs_dir: Path, oldest_use: float, limit_bytes: int) -> list[SweptCache]:
    """Keep the limits of all caches that no container has; return those that were changed, for the log.

    One over its own limit is emptied. Removed are those not used since `oldest_use`, in seconds of the epoch, and
    then, the oldest use first, those that are too many for `limit_bytes`.
    """
    done: list[SweptCache] = []
    with store.lock:
        used = {key for note in read_mount_notes(jobs_dir) for key in note.caches}
        sizes: dict[StoredCache, int] = {}
        for cache in store.list():
            sizes[cache] = 0
            if cache.folder.name not in used:
                store.close(cache)
                if cache.used_at < oldest_use:
                    done.append(SweptCache(cache.folder.name, "age"))
                    store.remove(cache)
                    del sizes[cache]
                    continue
                if is_over(cache):
                    done.append(SweptCache(cache.folder.name, "over_limit"))
                    store.empty(cache)
            sizes[cache] = measure_disk_use(cache.folder).bytes
        total = sum(sizes.values())
        for cache in _oldest_first(cache for cache in sizes if cache.folder.name not in used):
            if total <= limit_bytes:
                break
            done.append(SweptCache(cache.folder.name, "total"))
            store.remove(cache)
            total -= sizes[cache]
    return done


def _oldest_first(caches: Iterable[StoredCache]) -> list[StoredCache]:
    return sorted(caches, key=lambda cache: cache.used_at)
