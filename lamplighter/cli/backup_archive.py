"""The file of a backup: a ZIP that anybody can look into, whose manifest names every part with its size and sha256.

It holds secrets (keys of the installation, signing secrets, broker passwords of hosts), so only its user can read it.
"""

import hashlib
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO

import msgspec
from msgspec import Struct

from bus.nats.snapshots import StreamSnapshot

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
STREAMS_PREFIX, FILES_PREFIX, ASSETS_PREFIX = "streams/", "files/", "assets/"
BLOCK_BYTES = 512 * 1024  # goes to the broker as one message, which takes 2 MB


class BackupUnusable(Exception):
    """The file is no backup, a damaged one, or one of a newer release; the message says which and what to do."""


class ArchivePart(Struct, frozen=True):
    """One member of the ZIP."""

    name: str
    bytes: int
    sha256: str


class StreamBackup(Struct, frozen=True):
    """A stream: what the broker says of it, and its bytes."""

    snapshot: StreamSnapshot
    part: ArchivePart


class BackupManifest(Struct, frozen=True):
    """What the file holds. `format` rises when an older release could not read it; unknown fields are passed over.

    `streams` in the order in which they were taken. `files` by their place in the data folder. `assets` None: left out.
    """

    format: int
    release: str
    made_at: datetime
    streams: tuple[StreamBackup, ...]
    files: tuple[ArchivePart, ...] = ()
    assets: tuple[ArchivePart, ...] | None = None

    @property
    def job_count(self) -> int:
        """How many records there are, those with a delete marker too."""
        return next((kept.snapshot.subject_count for kept in self.streams if kept.snapshot.name == "KV_STATE"), 0)

    @property
    def parts(self) -> tuple[ArchivePart, ...]:
        """All of them."""
        return (*(kept.part for kept in self.streams), *self.files, *(self.assets or ()))


class PartWriter:
    """One part while it is written. Blocking."""

    def __init__(self, name: str, sink: IO[bytes]) -> None:
        self._name, self._sink = name, sink
        self._hash, self._bytes = hashlib.sha256(), 0

    def write(self, chunk: bytes) -> None:
        """Append."""
        self._sink.write(chunk)
        self._hash.update(chunk)
        self._bytes += len(chunk)

    def close(self) -> ArchivePart:
        """What was written."""
        self._sink.close()
        return ArchivePart(self._name, self._bytes, self._hash.hexdigest())


class ArchiveWriter:
    """A backup on its way; one member after the other. Blocking."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._sink: IO[bytes] | None = None

    def start_part(self, name: str) -> PartWriter:
        """The next member; close it before the one behind it."""
        self._sink = self._archive.open(name, "w", force_zip64=True)
        return PartWriter(name, self._sink)

    def close(self) -> None:
        """A member that was broken off keeps the archive from being closed."""
        if self._sink is not None:
            self._sink.close()

    def write_manifest(self, manifest: BackupManifest) -> None:
        """Last of all: a file without it is no backup."""
        self._archive.writestr(MANIFEST, msgspec.json.encode(manifest))


@contextmanager
def create_archive(file: Path) -> Iterator[ArchiveWriter]:
    """`file`, whole, synced and private, or as it was before. Blocking; raises OSError."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w+b") as raw:
            # Snapshots are compressed and assets are videos: to compress them again would only cost time.
            with zipfile.ZipFile(raw, "w", zipfile.ZIP_STORED) as archive:
                writer = ArchiveWriter(archive)
                try:
                    yield writer
                finally:
                    writer.close()
            raw.flush()
            os.fsync(raw.fileno())
        part.replace(file)
        _fsync_folder(file.parent)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class ArchiveReader:
    """A backup that can be read. Blocking."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.manifest = _read_manifest(archive)

    def read_blocks(self, part: ArchivePart) -> Iterator[bytes]:
        """Its bytes. Raises Unusable where they are not those that were written."""
        hasher, size = hashlib.sha256(), 0
        try:
            with self._archive.open(part.name) as source:
                while block := source.read(BLOCK_BYTES):
                    hasher.update(block)
                    size += len(block)
                    yield block
        except (KeyError, zipfile.BadZipFile, EOFError) as error:
            raise _damaged_error(part.name) from error
        if (size, hasher.hexdigest()) != (part.bytes, part.sha256):
            raise _damaged_error(part.name)

    def verify(self) -> None:
        """Read all of it. Raises Unusable: then nothing of it should be used."""
        for part in self.manifest.parts:
            for _ in self.read_blocks(part):
                pass


@contextmanager
def open_archive(file: Path) -> Iterator[ArchiveReader]:
    """`file` as a backup. Raises Unusable, OSError."""
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise BackupUnusable(f"{file} is no backup, or the end of it is missing: take another copy of it") from error
    with archive:
        yield ArchiveReader(archive)


def _read_manifest(archive: zipfile.ZipFile) -> BackupManifest:
    try:
        data = archive.read(MANIFEST)
        made = msgspec.json.decode(data, type=_FormatHeader)
        if made.format > FORMAT_VERSION:
            raise BackupUnusable(
                f"the backup is of format {made.format} (release {made.release}), this release reads up to "
                f"{FORMAT_VERSION}: restore it with that release or a newer one"
            )
        return msgspec.json.decode(data, type=BackupManifest)
    except KeyError as error:
        raise BackupUnusable(f"there is no {MANIFEST} in it: it is no backup of Lamplighter's") from error
    except (msgspec.DecodeError, zipfile.BadZipFile) as error:
        raise _damaged_error(MANIFEST) from error


class _FormatHeader(Struct, frozen=True):
    """What every format has."""

    format: int
    release: str = "unknown"


def _damaged_error(name: str) -> BackupUnusable:
    return BackupUnusable(f"{name} in the backup is damaged: take another copy of the file, or an earlier backup")
