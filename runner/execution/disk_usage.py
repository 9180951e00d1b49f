"""Disk use: of a job, with the watch that detects when it exceeds the endpoint's `disk_mb`, and of caches. Blocking.

All of the job's folder counts except in/, whose files belong to the host. A job cannot hide its use by links, holes,
modes or depth. Nothing is followed, a folder without rights is given them, and a tree deeper than DEPTH_LIMIT counts as
an excess.

The limits of caches are checked while a job runs, between two jobs of a container, and when the caches are unused.
"""

import os
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from msgspec import Struct

from runner.assets.container_folders import CacheStore, StoredCache
from runner.assets.volume_store import read_mount_note, read_mount_notes
from runner.engines.launch import open_dir
from runner.engines.port import MIB

BLOCK_BYTES = 512  # unit of st_blocks, whatever the file system's own block size is: stat(2)
ENTRIES_PER_MIB = 64  # one per 16 KiB, as mkfs.ext4 provides inodes
MIN_ENTRIES = 4_096
MAX_ENTRIES = 1_000_000  # limits the time of one walk to seconds
DEPTH_LIMIT = 100  # nested folders; a walk at this depth has as many descriptors open
INPUT_DIR = "in"
DISK_REMEDY = "write less, or raise disk_mb in the image's endpoint.toml"
WALK_PAUSE_FACTOR = 20  # the pause after a walk, as a multiple of its CPU time


class DiskUse(Struct, frozen=True):
    """Result of a walk. `bytes` are allocated bytes. A walk stops at its limit of entries, so these are minima."""

    bytes: int = 0
    entries: int = 0
    too_deep: bool = False


class DiskLimit(Struct, frozen=True):
    """Limit of a job, in bytes and in number of files and folders."""

    bytes: int
    entries: int

    def explain_excess(self, use: DiskUse) -> str | None:
        """Return why `use` is too much, with figures and a remedy; None if it is not."""
        allowed = to_mib(self.bytes)
        if use.bytes > self.bytes:
            return f"the job used {to_mib(use.bytes)} MiB of disk and may use {allowed}: {DISK_REMEDY}"
        if use.entries > self.entries:
            return (
                f"the job made over {self.entries} files and folders, the limit for {allowed} MiB of disk: "
                f"{DISK_REMEDY}"
            )
        if use.too_deep:
            return f"the job nested folders deeper than {DEPTH_LIMIT} levels: write into fewer levels"
        return None


def disk_limit(disk_mb: int) -> DiskLimit | None:
    """Return the limit for an endpoint's `disk_mb`; None for 0."""
    if not disk_mb:
        return None
    return DiskLimit(disk_mb * MIB, min(max(disk_mb * ENTRIES_PER_MIB, MIN_ENTRIES), MAX_ENTRIES))


def to_mib(size: int) -> int:
    """Return bytes in MiB, rounded up, so that a value over a limit also reads as over it."""
    return -(-size // MIB)


class _WalkLevel(Struct):
    """A folder on the path down, and its subfolders that are still to be visited."""

    place: int
    folders: list[str]


class _DiskWalk:
    """One walk, by descriptors: the job may rename and remove entries during it. Ends soon after `entry_limit`."""

    def __init__(self, entry_limit: int) -> None:
        self._most = entry_limit
        self._bytes = 0
        self._entries = 0
        self._too_deep = False
        self._linked: set[int] = set()  # inodes with several names, each counted once

    def run(self, folder: Path) -> DiskUse:
        levels: list[_WalkLevel] = []
        try:
            self._descend(levels, str(folder), None)
            if levels:
                levels[0].folders = [name for name in levels[0].folders if name != INPUT_DIR]
            while levels and self._entries <= self._most:
                if not levels[-1].folders:
                    os.close(levels.pop().place)
                elif len(levels) > DEPTH_LIMIT:
                    self._too_deep = True
                    break
                else:
                    self._descend(levels, levels[-1].folders.pop(), levels[-1].place)
        finally:
            for level in levels:
                os.close(level.place)
        return DiskUse(self._bytes, self._entries, self._too_deep)

    def _descend(self, levels: list[_WalkLevel], name: str, parent: int | None) -> None:
        """Count the entries of the folder, if it still is one and can be opened."""
        with suppress(OSError):
            level = _WalkLevel(open_dir(name, parent), [])
            levels.append(level)
            with os.scandir(level.place) as entries:
                for entry in entries:
                    self._entries += 1
                    if self._entries > self._most:
                        return
                    with suppress(FileNotFoundError):
                        self._count(entry, level)

    def _count(self, entry: "os.DirEntry[str]", level: _WalkLevel) -> None:
        found = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            level.folders.append(entry.name)
        elif found.st_nlink > 1:
            if found.st_ino in self._linked:
                return
            self._linked.add(found.st_ino)
        self._bytes += found.st_blocks * BLOCK_BYTES


def measure_disk_use(job_dir: Path, entry_limit: int = MAX_ENTRIES) -> DiskUse:
    """Return what the job in `job_dir` uses now."""
    return _DiskWalk(entry_limit).run(job_dir)


class DiskWatch:
    """Watches the folder of one running job. `walk_s` is the longest time between two walks.

    `now` is in seconds, monotonic. `spent` is the CPU time of the calling thread. Elapsed time would not do: a job that
    keeps the host busy would be checked less often.

    A check is one statvfs as long as the whole file system has not lost as much space as the job has left. Other
    programs may free space at the same moment and hide the job's growth, so a walk follows after `walk_s` in any case.
    """

    def __init__(
        self,
        job_dir: Path,
        limit: DiskLimit,
        walk_s: float,
        now: Callable[[], float] = time.monotonic,
        spent: Callable[[], float] = time.thread_time,
    ) -> None:
        self._folder = job_dir
        self._limit = limit
        self._walk_s = walk_s
        self._now = now
        self._cpu_time_s = spent
        self._use = DiskUse()
        self._free: tuple[int, int] | None = None  # bytes and inodes, at the last walk
        self._walked_at = 0.0
        self._pause_s = 0.0

    def check(self) -> str | None:
        """Return why the job uses too much, or None."""
        free, began = self._free_space(), self._cpu_time_s()
        if self._free is not None and not self._is_due(self._free, free, self._now() - self._walked_at):
            return None
        self._use = measure_disk_use(self._folder, self._limit.entries)
        self._free, self._walked_at = free, self._now()
        self._pause_s = min(WALK_PAUSE_FACTOR * (self._cpu_time_s() - began), self._walk_s)
        return self._limit.explain_excess(self._use)

    def _is_due(self, before: tuple[int, int], free: tuple[int, int], passed_s: float) -> bool:
        if passed_s < self._pause_s:
            return False
        grown_bytes, grown_entries = before[0] - free[0], before[1] - free[1]
        may_be_over = (
            self._use.bytes + grown_bytes > self._limit.bytes or self._use.entries + grown_entries > self._limit.entries
        )
        return may_be_over or passed_s >= self._walk_s

    def _free_space(self) -> tuple[int, int]:
        """Return free bytes and inodes; 0 if the folder is gone, which a job of the process engine can remove."""
        with suppress(OSError):
            disk = os.statvfs(self._folder)
            return disk.f_bfree * disk.f_frsize, disk.f_ffree
        return 0, 0


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
