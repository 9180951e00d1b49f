"""The caches of this host's jobs on its disk, each of one owner and one endpoint. Blocking.

A folder `<owner>.<endpoint>.<digest>.<name>.<max_mb>` has the folder `data`, which a container gets. Its time of change
is that of the last use. Only one runner uses them. No owner, endpoint or cache has a dot in its name.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from bus.secret_files import TRAVERSE_ONLY_MODE, make_private_folder
from runner.tree_removal import remove_tree
from schemas.endpoint import Endpoint
from schemas.mounts import Cache

_DATA = "data"
_DIGEST_CHARS = 16
_PARTS = 5  # of a folder's name


class StoredCache(NamedTuple):
    """One cache on the disk. `folder` is ours, and the container gets the folder in it."""

    folder: Path
    used_at: float

    @property
    def data(self) -> Path:
        """The folder that a container gets."""
        return self.folder / _DATA

    @property
    def owner(self) -> str:
        """The owner whose jobs use the cache."""
        return self.folder.name.split(".")[0]

    @property
    def name(self) -> str:
        """The name of the cache in endpoint.toml."""
        return self.folder.name.split(".")[3]

    @property
    def max_mb(self) -> int:
        """The limit in MiB: a cache with more is emptied before the next job."""
        return int(self.folder.name.split(".")[4])


def cache_key(endpoint: Endpoint, owner: str, cache: Cache) -> str:
    """Return the name of the folder. Another endpoint.toml has other caches."""
    digest = hashlib.sha256(msgspec.json.encode(endpoint)).hexdigest()[:_DIGEST_CHARS]
    return f"{owner}.{endpoint.name}.{digest}.{cache.name}.{cache.max_mb}"


class CacheStore:
    """The folder of the caches. `is_over` measures whether a cache holds more than is kept.

    Hold `lock` from finding out that a cache is unused until it is changed.
    """

    def __init__(self, folder: Path, is_over: Callable[[StoredCache], bool]) -> None:
        self.folder = folder.absolute()
        self._is_over = is_over
        self.lock = threading.Lock()

    def open(self, key: str, *, is_used: bool) -> StoredCache:
        """Return a cache that a container may get now: made if it is not here, emptied if it holds too much.

        One that another container has as well (`is_used`) is not emptied.
        """
        make_private_folder(self.folder, TRAVERSE_ONLY_MODE)
        cache = StoredCache(self.folder / key, 0.0)
        if not cache.folder.exists():
            make_private_folder(cache.folder)
        elif not is_used and self._is_over(cache):
            self.empty(cache)
        cache.data.mkdir(mode=0o700, exist_ok=True)
        os.utime(cache.folder)
        return cache

    def find(self, key: str) -> StoredCache | None:
        """Return the cache of this name; None if it is not here."""
        folder = self.folder / key
        return StoredCache(folder, folder.stat().st_mtime) if _is_cache(folder) else None

    def list(self) -> Iterator[StoredCache]:
        """Yield all caches of the host, by folder name."""
        for folder in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            if _is_cache(folder):
                yield StoredCache(folder, folder.stat().st_mtime)

    def close(self, cache: StoredCache) -> None:
        """Close the cache, which is unused now, to the user of jobs."""
        cache.folder.chmod(0o700)

    def empty(self, cache: StoredCache) -> None:
        """Remove all that is in the cache. The time of its last use stays."""
        remove_tree(cache.data)
        os.utime(cache.folder, (cache.used_at, cache.used_at))

    def remove(self, cache: StoredCache) -> None:
        """Remove the cache with its files. Raises OSError."""
        remove_tree(cache.folder)


def _is_cache(folder: Path) -> bool:
    parts = folder.name.split(".")
    return len(parts) == _PARTS and parts[-1].isdecimal() and folder.is_dir()
