"""The folders that containers get besides their jobs' own, for an endpoint and an owner: volumes, caches and secrets.

A cache is of one owner and one endpoint. A folder `<owner>.<endpoint>.<digest>.<name>.<max_mb>` has the folder `data`,
which a container gets. Its time of change is that of the last use. Only one runner uses them. No owner, endpoint or
cache has a dot in its name.

Each container has a folder of its own for secrets, outside /job. They are in memory where the host has a tmpfs that
containers can get: the runner writes none to a disk, so a power cut leaves none. Elsewhere the folder is in the
container's folder. A warm container is started with an empty one. The files are written before the job starts, and
deleted before another job.

Most calls here block.
"""

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct, field

from bus.secret_files import TRAVERSE_ONLY_MODE, make_private_folder
from runner.assets.volume_source import VolumeSource
from runner.assets.volume_store import MountNote, VolumeStore, read_mount_notes, write_mount_note
from runner.engines.launch import prepare_private_folder, remove_tree
from runner.engines.port import FolderMount
from runner.engines.selection import is_beside_its_jobs
from schemas.endpoint import Endpoint
from schemas.endpoint_parts import Cache, Volume, folder_variable

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


class HostFolders(Struct, frozen=True):
    """The volumes of this host, where their files come from, and the caches.

    `given`: folders to use in place of the volumes of these names, as they are.
    """

    volumes: VolumeStore
    source: VolumeSource
    caches: CacheStore
    given: Mapping[str, Path] = field(default_factory=dict)

    def mount(self, endpoint: Endpoint, owner: str, container: Path) -> tuple[FolderMount, ...]:
        """Return what a container of the endpoint gets, and note it in the container's own folder. Blocking.

        A container that belongs to no owner gets no caches.
        """
        if not endpoint.volumes and not endpoint.caches:
            return ()
        caches = {cache_key(endpoint, owner, cache): cache for cache in endpoint.caches} if owner else {}
        volumes = tuple(
            _mount_volume(volume, self.given.get(volume.name, self.volumes.tree_path(volume)))
            for volume in endpoint.volumes
        )
        with self.caches.lock:
            used = {key for note in read_mount_notes(container.parent) for key in note.caches}
            write_mount_note(container, MountNote(tuple(volume.digest for volume in endpoint.volumes), tuple(caches)))
            opened = [(cache, self.caches.open(key, is_used=key in used)) for key, cache in caches.items()]
        return volumes + tuple(
            FolderMount(
                source=stored.data,
                target=cache.path,
                variables=(folder_variable(cache), *cache.env),
                is_writable=True,
            )
            for cache, stored in opened
        )


def _mount_volume(volume: Volume, source: Path) -> FolderMount:
    return FolderMount(source=source, target=volume.path, variables=(folder_variable(volume), *volume.env))


SECRETS_DIR = "secrets"
SECRETS_MOUNT = "/run/secrets"
SECRETS_ENV = "LAMPLIGHTER_SECRETS"  # the folder's path as the job sees it
MEMORY_FOLDER = Path("/dev/shm")  # noqa: S108 - a tmpfs on every Linux
MOUNTS_FILE = Path("/proc/self/mountinfo")
MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs"})


class SecretsFolderUnusable(OSError):
    """The folder for files of secrets cannot be used; the message says why and what to do."""


class SecretFiles:
    """The secrets of all containers of a runner. `root` has one folder for each container, by the name of its folder.

    None: the secrets are in the container's folder, on its disk. All methods block.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._root = root

    def folder(self, container: Path) -> Path:
        """Return the folder of the secrets of the container whose own folder is `container`."""
        return container / SECRETS_DIR if self._root is None else self._root / container.name

    def make_root(self) -> None:
        """Make the folder of all secrets. Raises SecretsFolderUnusable."""
        root = self._root
        if root is None:
            return
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = root.lstat()
        except OSError as error:
            raise SecretsFolderUnusable(
                f"the folder {root} for secrets of jobs cannot be made ({error.strerror}): set secrets_folder to "
                "another one"
            ) from error
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise SecretsFolderUnusable(
                f"{root}, where secrets of jobs are kept, belongs to another user: remove it, or set secrets_folder "
                "to a folder of a tmpfs that only this user can write to"
            )

    def mount(self, container: Path) -> FolderMount:
        """Make the folder of the secrets of a container, and return it as the container gets it. Raises OSError."""
        folder = self.folder(container)
        self.make_root()
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        return FolderMount(source=folder.resolve(), target=SECRETS_MOUNT, variables=(SECRETS_ENV,), is_private=True)

    def write(self, container: Path, secrets: Mapping[str, str]) -> None:
        """Write one file for each secret of a container that is not started yet. Raises OSError.

        The engine gives the files to the job's user when it starts the container.
        """
        self.mount(container)
        self._write_files(container, secrets)

    def write_for_running(self, container: Path, secrets: Mapping[str, str], job_root: Path) -> bool:
        """Write the files for a container that runs already. Raises OSError.

        Return False if its folder is gone, so that it cannot get them. `job_root` is what it sees as /job, whose user
        then owns the files.
        """
        if not self.folder(container).is_dir():
            return False
        self._write_files(container, secrets)
        user = (job_root / "tmp").stat()
        prepare_private_folder(self.folder(container), (user.st_uid, user.st_gid))
        return True

    def _write_files(self, container: Path, secrets: Mapping[str, str]) -> None:
        self.clear(container)
        for name, value in secrets.items():
            path = self.folder(container) / name
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(value)

    def read(self, container: Path) -> Mapping[str, str]:
        """Return the secrets of the job that the container has; empty if it has none."""
        with suppress(FileNotFoundError):
            return {path.name: path.read_text() for path in self.folder(container).iterdir()}
        return {}

    def clear(self, container: Path) -> None:
        """Remove the files, and keep the folder."""
        with suppress(FileNotFoundError):
            for path in self.folder(container).iterdir():
                path.unlink()

    def remove(self, container: Path) -> None:
        """Remove the folder of a container that was removed. Raises OSError."""
        if self._root is not None:
            remove_tree(self.folder(container))

    def remove_orphans(self, containers: Iterable[Path]) -> None:
        """Remove the folders of all but these containers: a crash may have left them. Raises OSError."""
        if self._root is None or not self._root.is_dir():
            return
        kept = {container.name for container in containers}
        for folder in list(self._root.iterdir()):
            if folder.name not in kept:
                remove_tree(folder)

    @cached_property
    def is_in_memory(self) -> bool:
        """Whether the secrets are in memory, and in no file on a disk. Reads the mounts once."""
        return self._root is not None and is_in_memory(self._root.parent)

    def close(self) -> None:
        """Remove the folder of all secrets if no container has any."""
        if self._root is not None:
            with suppress(OSError):  # a container may run on after this process
                self._root.rmdir()


def open_secret_files(data: Path, wanted: Path | None, engine: str, *, is_memory_shared: bool) -> SecretFiles:
    """Return where to keep the secrets of the runner whose data folder is `data`.

    `wanted`: the folder that the settings name. `is_memory_shared`: jobs see all of /dev/shm. Blocking. Raises
    SecretsFolderUnusable.
    """
    is_offered = not is_memory_shared and not (engine == "docker" and is_beside_its_jobs())
    if wanted is None and is_offered and is_in_memory(MEMORY_FOLDER) and os.access(MEMORY_FOLDER, os.W_OK):
        wanted = MEMORY_FOLDER
    if wanted is None:
        return SecretFiles()
    files = SecretFiles(wanted / f"lamplighter-{hashlib.sha256(str(data.resolve()).encode()).hexdigest()[:16]}")
    files.make_root()
    files.close()  # it is made again with the first secret
    return files


def is_in_memory(folder: Path, mounts_file: Path = MOUNTS_FILE) -> bool:
    """Return whether the folder is on a file system in memory. Blocking."""
    mounts: dict[str, str] = {}
    try:
        lines = mounts_file.read_text().splitlines()
    except OSError:
        return False
    for line in lines:  # proc_pid_mountinfo(5); of two mounts at one place the later one counts
        before, _, after = line.partition(" - ")
        mounts[before.split(" ")[4]] = after.split(" ")[0]
    real = folder.resolve()
    place = next((str(path) for path in (real, *real.parents) if str(path) in mounts), "")
    return mounts.get(place) in MEMORY_FILE_SYSTEMS
