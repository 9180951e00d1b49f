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

from bus.backup import Snapshot

FORMAT = 1
MANIFEST = "manifest.json"
STREAMS, FILES, ASSETS = "streams/", "files/", "assets/"
BLOCK = 512 * 1024  # goes to the broker as one message, which takes 2 MB


class Unusable(Exception):
    """The file is no backup, a damaged one, or one of a newer release; the message says which and what to do."""


class Part(Struct, frozen=True):
    """One member of the ZIP."""

    name: str
    bytes: int
    sha256: str


class Kept(Struct, frozen=True):
    """A stream: what the broker says of it, and its bytes."""

    snapshot: Snapshot
    part: Part


class Manifest(Struct, frozen=True):
    """What the file holds. `format` rises when an older release could not read it; unknown fields are passed over.

    `streams` in the order in which they were taken. `files` by their place in the data folder. `assets` None: left out.
    """

    format: int
    release: str
    made_at: datetime
    streams: tuple[Kept, ...]
    files: tuple[Part, ...] = ()
    assets: tuple[Part, ...] | None = None

    @property
    def jobs(self) -> int:
        """How many records there are, those with a delete marker too."""
        return next((kept.snapshot.subjects for kept in self.streams if kept.snapshot.name == "KV_STATE"), 0)

    @property
    def parts(self) -> tuple[Part, ...]:
        """All of them."""
        return (*(kept.part for kept in self.streams), *self.files, *(self.assets or ()))


class Member:
    """One part while it is written. Blocking."""

    def __init__(self, name: str, sink: IO[bytes]) -> None:
        self._name, self._sink = name, sink
        self._hash, self._bytes = hashlib.sha256(), 0

    def write(self, chunk: bytes) -> None:
        """Append."""
        self._sink.write(chunk)
        self._hash.update(chunk)
        self._bytes += len(chunk)

    def close(self) -> Part:
        """What was written."""
        self._sink.close()
        return Part(self._name, self._bytes, self._hash.hexdigest())


class Writer:
    """A backup on its way; one member after the other. Blocking."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._sink: IO[bytes] | None = None

    def begin(self, name: str) -> Member:
        """The next member; close it before the one behind it."""
        self._sink = self._archive.open(name, "w", force_zip64=True)
        return Member(name, self._sink)

    def close(self) -> None:
        """A member that was broken off keeps the archive from being closed."""
        if self._sink is not None:
            self._sink.close()

    def end(self, manifest: Manifest) -> None:
        """Last of all: a file without it is no backup."""
        self._archive.writestr(MANIFEST, msgspec.json.encode(manifest))


@contextmanager
def writing(file: Path) -> Iterator[Writer]:
    """`file`, whole, synced and private, or as it was before. Blocking; raises OSError."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w+b") as raw:
            # Snapshots are compressed and assets are videos: to compress them again would only cost time.
            with zipfile.ZipFile(raw, "w", zipfile.ZIP_STORED) as archive:
                writer = Writer(archive)
                try:
                    yield writer
                finally:
                    writer.close()
            raw.flush()
            os.fsync(raw.fileno())
        part.replace(file)
        _sync(file.parent)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Reader:
    """A backup that can be read. Blocking."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.manifest = _manifest(archive)

    def blocks(self, part: Part) -> Iterator[bytes]:
        """Its bytes. Raises Unusable where they are not those that were written."""
        hasher, size = hashlib.sha256(), 0
        try:
            with self._archive.open(part.name) as source:
                while block := source.read(BLOCK):
                    hasher.update(block)
                    size += len(block)
                    yield block
        except (KeyError, zipfile.BadZipFile, EOFError) as error:
            raise _damaged(part.name) from error
        if (size, hasher.hexdigest()) != (part.bytes, part.sha256):
            raise _damaged(part.name)

    def verify(self) -> None:
        """Read all of it. Raises Unusable: then nothing of it should be used."""
        for part in self.manifest.parts:
            for _ in self.blocks(part):
                pass


@contextmanager
def reading(file: Path) -> Iterator[Reader]:
    """`file` as a backup. Raises Unusable, OSError."""
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise Unusable(f"{file} is no backup, or the end of it is missing: take another copy of it") from error
    with archive:
        yield Reader(archive)


def _manifest(archive: zipfile.ZipFile) -> Manifest:
    try:
        data = archive.read(MANIFEST)
        made = msgspec.json.decode(data, type=_Format)
        if made.format > FORMAT:
            raise Unusable(
                f"the backup is of format {made.format} (release {made.release}), this release reads up to {FORMAT}: "
                "restore it with that release or a newer one"
            )
        return msgspec.json.decode(data, type=Manifest)
    except KeyError as error:
        raise Unusable(f"there is no {MANIFEST} in it: it is no backup of Lamplighter's") from error
    except (msgspec.DecodeError, zipfile.BadZipFile) as error:
        raise _damaged(MANIFEST) from error


class _Format(Struct, frozen=True):
    """What every format has."""

    format: int
    release: str = "unknown"


def _damaged(name: str) -> Unusable:
    return Unusable(f"{name} in the backup is damaged: take another copy of the file, or an earlier backup")
