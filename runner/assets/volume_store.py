"""The volumes of a host on its disk. Blocking.

    files/<sha256>        a verified file, read-only; <sha256>.part is a download that can be resumed
    trees/<digest>/…      a complete volume: hard links to its files, so that volumes share what they have in common
    runners/<id>.json     which volumes a runner offers, and where its containers' folders are
    locks/                who downloads a file, and who removes

Several runners of one machine may use one folder. A crash at any point leaves a `.part`, or files that no volume has
yet: the next fill goes on from there. A file or a volume gets its name only when it is complete and synced.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

from bus.secret_files import TRAVERSE_ONLY_MODE, atomic_write, fsync_folder, make_private_folder
from runner.assets.cache import FILE_MODE, PART_SUFFIX, hash_file, verification_mtime_ns
from runner.assets.volume_source import FillFailed, FillFailure, disk_failure
from runner.engines.launch import remove_tree
from schemas.asset import Digest
from schemas.endpoint_parts import Volume, VolumeFile

NOTE_FILE = "mounts.json"
_FILES, _TREES, _RUNNERS, _LOCKS = "files", "trees", "runners", "locks"
_UNFINISHED_PREFIX = "."  # of a tree that is being made or removed
GIB = 1 << 30


class MountNote(Struct, frozen=True):
    """NOTE_FILE, in the folder of a container: the volumes and caches that it has. It goes with the container."""

    volumes: tuple[Digest, ...] = ()
    caches: tuple[str, ...] = ()


def write_mount_note(container: Path, note: MountNote) -> None:
    """Note what the container in this folder has, before it starts."""
    container.mkdir(parents=True, exist_ok=True)
    atomic_write(container / NOTE_FILE, msgspec.json.encode(note), sync=False)


def read_mount_note(container: Path) -> MountNote:
    """Return what the container in this folder has."""
    try:
        return msgspec.json.decode((container / NOTE_FILE).read_bytes(), type=MountNote)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return MountNote()


def read_mount_notes(jobs_dir: Path) -> list[MountNote]:
    """Return what the containers have whose folders are in `jobs_dir`."""
    return [read_mount_note(path.parent) for path in jobs_dir.glob(f"*/{NOTE_FILE}")]


class _RunnerNote(Struct, frozen=True):
    """A file in runners/: the folder of its containers, and the volumes that it offers with their files."""

    jobs: str
    wanted: dict[Digest, list[Digest]]


class FileLock:
    """A lock that one task of one process has. It ends with the process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    def release(self) -> None:
        """Release the lock, and remove its file."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


class _Usage(NamedTuple):
    """The needed part: volumes that are offered or in a container, and files of those that are offered."""

    volumes: frozenset[Digest]
    files: frozenset[Digest]


class VolumeStore:
    """The folder of the volumes. `jobs_dir` has the containers' folders of this runner.

    It holds at most `limit_bytes`; `reserve_bytes` of the disk stay free.
    """

    def __init__(self, folder: Path, jobs_dir: Path, limit_bytes: int, reserve_bytes: int) -> None:
        self.folder = folder.absolute()
        self._jobs_dir = jobs_dir.absolute()
        self._limit_bytes = limit_bytes
        self._reserve_bytes = reserve_bytes
        self._registered: _RunnerNote | None = None

    @property
    def exists(self) -> bool:
        """Whether there has ever been a volume here."""
        return self.folder.is_dir()

    def tree_path(self, volume: Volume) -> Path:
        """Return the folder of a complete volume."""
        return self.folder / _TREES / volume.digest

    def part_path(self, sha256: Digest) -> Path:
        """Return the path of a file's download, from which it resumes."""
        return self._file_path(sha256).with_suffix(PART_SUFFIX)

    def prepare(self, volumes: Iterable[Volume]) -> None:
        """Make the folder, and note which volumes this runner offers: no runner removes those."""
        make_private_folder(self.folder, TRAVERSE_ONLY_MODE)
        for name in (_FILES, _RUNNERS, _LOCKS):
            make_private_folder(self.folder / name)
        if not (self.folder / _TREES).exists():
            make_private_folder(self.folder / _TREES)
        wanted = {volume.digest: sorted({file.sha256 for file in volume.files}) for volume in volumes}
        note = _RunnerNote(str(self._jobs_dir), dict(sorted(wanted.items())))
        if note != self._registered:
            name = hashlib.sha256(str(self._jobs_dir).encode()).hexdigest()[:16]
            path, content = self.folder / _RUNNERS / f"{name}.json", msgspec.json.encode(note)
            if not path.exists() or path.read_bytes() != content:  # a disk may be full when the runner starts again
                with self._lock_folder():
                    atomic_write(path, content)
            self._registered = note

    # ── filling ──────────────────────────────────────────────────────────────────────────────────────────────────

    def is_complete(self, volume: Volume) -> bool:
        """Return whether the volume is here. One with a damaged file is removed, with that file."""
        tree = self.tree_path(volume)
        if not tree.is_dir():
            return False
        damaged = [file for file in volume.files if not _is_intact(tree / file.path, file.sha256)]
        if not damaged:
            return True
        with self._lock_folder():
            for file in damaged:
                self._file_path(file.sha256).unlink(missing_ok=True)
            self._remove_tree(tree)
        return False

    def missing_files(self, volume: Volume) -> list[VolumeFile]:
        """Return the files of the volume that are not here yet, each content once."""
        files = {file.sha256: file for file in volume.files}
        return [file for sha256, file in files.items() if not self.contains(sha256)]

    def contains(self, sha256: Digest) -> bool:
        """Return whether the file is here and complete. A damaged one is removed."""
        path = self._file_path(sha256)
        if not path.exists():  # and so is not removed: another runner may add it at this moment
            return False
        if _is_intact(path, sha256):
            return True
        path.unlink(missing_ok=True)
        return False

    def try_lock(self, sha256: Digest) -> FileLock | None:
        """Return the right to download a file; None while another task or another runner has it."""
        path = self.folder / _LOCKS / sha256
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.stat().st_ino == os.fstat(descriptor).st_ino:  # else the one before us has just removed it
                return FileLock(path, descriptor)
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(descriptor)
        return None

    def add(self, sha256: Digest) -> None:
        """Give a finished, verified download its name."""
        part = self.part_path(sha256)
        part.chmod(FILE_MODE)
        size = part.stat().st_size
        os.utime(part, ns=(time.time_ns(), verification_mtime_ns(sha256, size)))
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(self._file_path(sha256))
        fsync_folder(self.folder / _FILES)

    def assemble(self, volume: Volume) -> None:
        """Make the volume of its files, all of which are here. Another runner may have been first."""
        tree = self.tree_path(volume)
        with self._lock_folder():
            if tree.exists():
                return
            made = tree.with_name(f"{_UNFINISHED_PREFIX}{tree.name}")
            remove_tree(made)
            folders = {made, *(made / parent for file in volume.files for parent in Path(file.path).parents)}
            for folder in sorted(folders):
                folder.mkdir(exist_ok=True)
                folder.chmod(0o755)  # the job is another user
            for file in volume.files:
                (made / file.path).hardlink_to(self._file_path(file.sha256))
            for folder in folders:
                fsync_folder(folder)
            made.rename(tree)
            fsync_folder(tree.parent)

    def received_bytes(self, volume: Volume) -> int:
        """Return how much of the volume's files has arrived."""
        return sum(map(self._received_bytes, {file.sha256 for file in volume.files}))

    def _received_bytes(self, sha256: Digest) -> int:
        for path in (self._file_path(sha256), self.part_path(sha256)):
            with suppress(FileNotFoundError):
                return path.stat().st_size
        return 0

    # ── room ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def make_room(self, sizes: Mapping[Digest, int], used_here: Iterable[Digest] = ()) -> None:
        """Remove volumes until files of these sizes fit beside the others. Raises FillFailed (QUOTA, DISK_FULL)."""
        coming = sum(max(0, size - self._received_bytes(sha256)) for sha256, size in sizes.items())
        over, short = self.collect(used_here, coming)
        if over > 0:
            limit, needed = format_gib(self._limit_bytes), format_gib(self._limit_bytes + over)
            what = "the file has" if len(sizes) == 1 else f"the {len(sizes)} files to come have"
            them = "it" if len(sizes) == 1 else "them"
            raise FillFailed(
                FillFailure.QUOTA,
                f"{what} {format_gib(sum(sizes.values()))}, with {them} the volumes need {needed}, and max_gb allows "
                f"{limit}",
            )
        if short > 0:
            free, reserve = format_gib(coming + self._reserve_bytes - short), format_gib(self._reserve_bytes)
            raise FillFailed(
                FillFailure.DISK_FULL,
                f"{format_gib(coming)} are to come, {free} are free in {self.folder}, and [gpu.placement] "
                f"disk_reserve_mb keeps {reserve} free",
            )

    def explain_error(self, error: OSError) -> FillFailed:
        """Return the failure for an error of this folder's disk; for a full one, with the space that is free."""
        failure = disk_failure(error)
        if failure.code is FillFailure.DISK_FULL:
            with suppress(OSError):
                disk = os.statvfs(self.folder)
                free = format_gib(disk.f_bavail * disk.f_frsize)
                return FillFailed(failure.code, f"{failure.message}: {free} are free in {self.folder}")
        return failure

    def collect(self, used_here: Iterable[Digest] = (), coming: int = 0) -> tuple[int, int]:
        """Remove what is unused until `coming` more bytes fit; return the bytes over the limit, and those missing.

        Only as much as needed: downloads that no volume needs, then the volumes that were not used for longest. Never
        one that a runner of this machine offers, or that a container has; `used_here` are those of jobs that get one.
        """
        with self._lock_folder():
            usage = self._find_usage(used_here)
            self._touch(usage.volumes)
            steps = self._removal_steps(usage)
            while True:
                disk = os.statvfs(self.folder)
                over = self._total_bytes() + coming - self._limit_bytes
                short = coming + self._reserve_bytes - disk.f_bavail * disk.f_frsize if coming else 0
                if max(over, short) <= 0 or not next(steps, False):
                    return over, short

    def _removal_steps(self, usage: _Usage) -> Iterator[bool]:
        """Remove one thing more at each step, the least useful first."""
        for path, status in sorted(self._stored_files()):
            if path.name.removesuffix(PART_SUFFIX) not in usage.files and status.st_nlink == 1:
                path.unlink(missing_ok=True)
                yield True
        trees = [path for path in (self.folder / _TREES).iterdir() if path.name not in usage.volumes]
        for tree in sorted(trees, key=lambda path: path.stat().st_mtime_ns):
            self._remove_tree(tree)
            for path, status in self._stored_files():
                if path.name not in usage.files and status.st_nlink == 1 and not path.suffix:
                    path.unlink()
            yield True

    def _find_usage(self, used_here: Iterable[Digest]) -> _Usage:
        volumes, files = set(used_here), set[Digest]()
        for path in (self.folder / _RUNNERS).glob("*.json"):
            with suppress(msgspec.DecodeError):
                note = msgspec.json.decode(path.read_bytes(), type=_RunnerNote)
                if not Path(note.jobs).is_dir():  # that runner was uninstalled
                    path.unlink()
                    continue
                volumes |= note.wanted.keys()
                files.update(*note.wanted.values())
                volumes.update(*(found.volumes for found in read_mount_notes(Path(note.jobs))))
        return _Usage(frozenset(volumes), frozenset(files))

    def _touch(self, digests: Iterable[Digest]) -> None:
        """Set the time of last use of the volumes to now."""
        for digest in digests:
            with suppress(FileNotFoundError):
                os.utime(self.folder / _TREES / digest)

    def _total_bytes(self) -> int:
        return sum(status.st_size for _, status in self._stored_files())

    def _stored_files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield files and downloads. Another runner may rename or remove one meanwhile."""
        for path in (self.folder / _FILES).iterdir():
            with suppress(FileNotFoundError):
                yield path, path.stat()

    def _remove_tree(self, tree: Path) -> None:
        """Hide the volume, then remove it: a crash leaves no half volume under its name."""
        hidden = tree.with_name(f"{_UNFINISHED_PREFIX}{tree.name.removeprefix(_UNFINISHED_PREFIX)}")
        if hidden != tree:
            remove_tree(hidden)
            tree.rename(hidden)
        remove_tree(hidden)

    @contextmanager
    def _lock_folder(self) -> Iterator[None]:
        """Let no other runner add or remove volumes at the same time."""
        with (self.folder / _LOCKS / "folder").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _file_path(self, sha256: Digest) -> Path:
        return self.folder / _FILES / sha256


def _is_intact(path: Path, sha256: Digest) -> bool:
    """Return whether the file is there and as it was when it was verified. One with another time is hashed again."""
    try:
        found = path.stat(follow_symlinks=False)
        mark = verification_mtime_ns(sha256, found.st_size)
        if found.st_mtime_ns == mark:
            return True
        if hash_file(path) != sha256:
            return False
        os.utime(path, ns=(time.time_ns(), mark))
    except FileNotFoundError:
        return False
    return True


def format_gib(size: int) -> str:
    """Return a number of bytes as `5.2 GiB`; a small one with two digits, as in `0.0046 GiB`."""
    gib = size / GIB
    return f"{gib:.1f} GiB" if gib >= 1 else f"{gib:.2g} GiB"


def list_volumes(endpoints: Iterable[Iterable[Volume]]) -> Mapping[Digest, Volume]:
    """Return the volumes of all endpoints by digest. Of equal ones the first counts: the content is the same."""
    found: dict[Digest, Volume] = {}
    for volumes in endpoints:
        for volume in volumes:
            found.setdefault(volume.digest, volume)
    return found
