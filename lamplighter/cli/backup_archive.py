"""The file of a backup: a ZIP, encrypted or not, whose manifest lists each member with its size and sha256.

It contains secrets (API keys, signing secrets, broker passwords of hosts), so only its user can read it.
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
from lamplighter.cli.backup_encryption import (
    DecryptingReader,
    EncryptedDataDamaged,
    EncryptingWriter,
    KeyFileUnusable,
    is_encrypted,
)

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
STREAMS_PREFIX, FILES_PREFIX, ASSETS_PREFIX = "streams/", "files/", "assets/"
BLOCK_BYTES = 512 * 1024  # sent to the broker as one message, whose limit is 2 MB


class BackupUnusable(Exception):
    """The file is not a backup, is damaged, or is from a newer release. The message says which, and what to do."""


class ArchivePart(Struct, frozen=True):
    """One member of the ZIP, with its size and digest."""

    name: str
    bytes: int
    sha256: str


class StreamBackup(Struct, frozen=True):
    """One stream: the broker's description of the snapshot, and the member with its bytes."""

    snapshot: StreamSnapshot
    part: ArchivePart


class BackupManifest(Struct, frozen=True):
    """The manifest. `format` rises when an older release could not read the file; unknown fields are ignored.

    `streams` are in the order in which they were saved. `files` are named by their path in the data folder. `assets` is
    None if they were left out.
    """

    format: int
    release: str
    made_at: datetime
    streams: tuple[StreamBackup, ...]
    files: tuple[ArchivePart, ...] = ()
    assets: tuple[ArchivePart, ...] | None = None

    @property
    def job_count(self) -> int:
        """The number of job records, including those with a delete marker."""
        return next((kept.snapshot.subject_count for kept in self.streams if kept.snapshot.name == "KV_STATE"), 0)

    @property
    def parts(self) -> tuple[ArchivePart, ...]:
        """All members besides the manifest."""
        return (*(kept.part for kept in self.streams), *self.files, *(self.assets or ()))


class PartWriter:
    """One member while it is written. Blocking."""

    def __init__(self, name: str, sink: IO[bytes]) -> None:
        self._name, self._sink = name, sink
        self._hash, self._bytes = hashlib.sha256(), 0

    def write(self, chunk: bytes) -> None:
        """Append `chunk` to the member and to its checksum."""
        self._sink.write(chunk)
        self._hash.update(chunk)
        self._bytes += len(chunk)

    def close(self) -> ArchivePart:
        """Close the member and return its description."""
        self._sink.close()
        return ArchivePart(self._name, self._bytes, self._hash.hexdigest())


class ArchiveWriter:
    """A backup while it is written, one member at a time. Blocking."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._sink: IO[bytes] | None = None

    def start_part(self, name: str) -> PartWriter:
        """Start the next member. Close it before starting another."""
        self._sink = self._archive.open(name, "w", force_zip64=True)
        return PartWriter(name, self._sink)

    def close(self) -> None:
        """Close a member that was left open by an error: an open member prevents closing the archive."""
        if self._sink is not None:
            self._sink.close()

    def write_manifest(self, manifest: BackupManifest) -> None:
        """Write the manifest last: a file without it is not a backup."""
        self._archive.writestr(MANIFEST, msgspec.json.encode(manifest))


@contextmanager
def create_archive(file: Path, secret: bytes | None = None) -> Iterator[ArchiveWriter]:
    """Write `file` atomically, synced, and readable only by its user. Encrypt it if there is a `secret`.

    Blocking; raises OSError.

    `bus.secret_files.atomic_write` takes the whole content at once, and a backup can be larger than the memory.
    """
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w+b") as raw:
            encrypting = EncryptingWriter(raw, secret) if secret is not None else None
            # Snapshots are compressed and assets are videos: compressing them again would only cost time.
            with zipfile.ZipFile(encrypting or raw, "w", zipfile.ZIP_STORED) as archive:
                writer = ArchiveWriter(archive)
                try:
                    yield writer
                finally:
                    writer.close()
            if encrypting is not None:
                encrypting.finish()
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
    """A backup that is read. Blocking."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.manifest = _read_manifest(archive)

    def read_blocks(self, part: ArchivePart) -> Iterator[bytes]:
        """Yield the bytes of a member. Raises BackupUnusable if they differ from what was written."""
        hasher, size = hashlib.sha256(), 0
        try:
            with self._archive.open(part.name) as source:
                while block := source.read(BLOCK_BYTES):
                    hasher.update(block)
                    size += len(block)
                    yield block
        except (KeyError, zipfile.BadZipFile, EOFError, EncryptedDataDamaged) as error:
            raise _damaged_error(part.name) from error
        if (size, hasher.hexdigest()) != (part.bytes, part.sha256):
            raise _damaged_error(part.name)

    def verify(self) -> None:
        """Read all members. Raises BackupUnusable: then none of them should be used."""
        for part in self.manifest.parts:
            for _ in self.read_blocks(part):
                pass


@contextmanager
def open_archive(file: Path, secret: bytes | None = None) -> Iterator[ArchiveReader]:
    """Open `file` as a backup. Raises BackupUnusable, KeyFileUnusable, and OSError."""
    is_sealed = is_encrypted(file)
    if is_sealed and secret is None:
        raise KeyFileUnusable(f"{file} is encrypted: give the key file that it was made with, by --key-file")
    with file.open("rb") as raw:
        try:
            source = DecryptingReader(raw, secret) if is_sealed and secret is not None else raw
            archive = zipfile.ZipFile(source)
        except (zipfile.BadZipFile, EncryptedDataDamaged) as error:
            raise BackupUnusable(f"{file} is not a backup, or its end is missing: use another copy of it") from error
        with archive:
            yield ArchiveReader(archive)


def _read_manifest(archive: zipfile.ZipFile) -> BackupManifest:
    try:
        data = archive.read(MANIFEST)
        made = msgspec.json.decode(data, type=_FormatHeader)
        if made.format > FORMAT_VERSION:
            raise BackupUnusable(
                f"the backup has format {made.format} (release {made.release}), this release reads up to format "
                f"{FORMAT_VERSION}: restore it with that release or a newer one"
            )
        return msgspec.json.decode(data, type=BackupManifest)
    except KeyError as error:
        raise BackupUnusable(f"{MANIFEST} is missing: the file is not a backup of Lamplighter") from error
    except (msgspec.DecodeError, zipfile.BadZipFile, EncryptedDataDamaged) as error:
        raise _damaged_error(MANIFEST) from error


class _FormatHeader(Struct, frozen=True):
    """The fields of the manifest that every format has."""

    format: int
    release: str = "unknown"


def _damaged_error(name: str) -> BackupUnusable:
    return BackupUnusable(f"{name} in the backup is damaged: use another copy of the file, or an earlier backup")
