"""The file of a backup: a ZIP, encrypted or not, whose manifest lists each member with its size and sha256.

It contains secrets (API keys, signing secrets, broker passwords of hosts), so only its user can read it.

It is encrypted by AES-256-GCM in chunks, with a key made by scrypt from the content of a key file:

    file   = header | chunk 0 | chunk 1 | … | last chunk
    header = magic | salt | check
    chunk  = ciphertext of CHUNK_BYTES (fewer in the last chunk) | tag

scrypt makes the key and `check` from the secret and the salt, which is random for each file. So a nonce may be the
number of the chunk, with a bit that marks the last one. A changed, moved or missing chunk, and a file that was cut at
a boundary, do not decrypt. `check` tells a wrong key from a damaged file. Blocking.
"""

import hashlib
import hmac
import io
import os
import secrets
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, NamedTuple

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import Struct

from bus.nats.snapshots import StreamSnapshot

MAGIC = b"lamplighter encrypted backup 1\n\0"
SALT_BYTES = CHECK_BYTES = TAG_BYTES = 16
HEADER_BYTES = len(MAGIC) + SALT_BYTES + CHECK_BYTES
CHUNK_BYTES = 256 * 1024
SECRET_MIN_BYTES = 16
SCRYPT_N, SCRYPT_R = 2**16, 8  # 64 MiB and about 0.2 s for each guess
_SCRYPT_MEMORY_BYTES = 2 * 128 * SCRYPT_N * SCRYPT_R


class KeyFileUnusable(Exception):
    """The key file cannot be used, is missing, or is not the one of this backup. The message says what to do."""


class EncryptedDataDamaged(Exception):
    """A chunk does not decrypt: the file was damaged, changed or cut."""


class _FileKey(NamedTuple):
    """The cipher of one file, and the header that starts it."""

    cipher: AESGCM
    header: bytes

    def nonce(self, index: int, *, is_last: bool) -> bytes:
        """Return 12 bytes that no other chunk of this file uses."""
        return (index << 1 | is_last).to_bytes(12, "big")


def read_key_file(path: Path) -> bytes:
    """Return the secret in the file, without white space around it. Raises KeyFileUnusable."""
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise KeyFileUnusable(f"the key file {path} cannot be read ({error.strerror}): correct --key-file") from error
    if len(secret) < SECRET_MIN_BYTES:
        raise KeyFileUnusable(
            f"the key in {path} is shorter than {SECRET_MIN_BYTES} characters: make one with "
            f"`openssl rand -base64 32 >{path}`"
        )
    return secret


def is_encrypted(file: Path) -> bool:
    """Return whether the file starts as an encrypted backup. Raises OSError."""
    with file.open("rb") as raw:
        return raw.read(len(MAGIC)) == MAGIC


def _derive(secret: bytes, salt: bytes) -> _FileKey:
    made = hashlib.scrypt(
        secret, salt=salt, n=SCRYPT_N, r=SCRYPT_R, p=1, maxmem=_SCRYPT_MEMORY_BYTES, dklen=32 + CHECK_BYTES
    )
    return _FileKey(AESGCM(made[:32]), MAGIC + salt + made[32:])


class EncryptingWriter:
    """A stream that can only be written. `finish` writes the last chunk; without it the file does not decrypt."""

    def __init__(self, raw: IO[bytes], secret: bytes) -> None:
        self._raw = raw
        self._key = _derive(secret, secrets.token_bytes(SALT_BYTES))
        self._waiting = bytearray()
        self._index = 0
        raw.write(self._key.header)

    def write(self, data: bytes) -> int:
        """Encrypt and write all complete chunks. The last one stays in memory: it is marked."""
        self._waiting += data
        while len(self._waiting) > CHUNK_BYTES:
            self._write_chunk(bytes(self._waiting[:CHUNK_BYTES]), is_last=False)
            del self._waiting[:CHUNK_BYTES]
        return len(data)

    def flush(self) -> None:
        """Do nothing: a chunk is written when it is complete."""

    def close(self) -> None:
        """Do nothing: the file belongs to the caller."""

    def finish(self) -> None:
        """Write the rest, marked as the last chunk, so that a cut file is noticed."""
        self._write_chunk(bytes(self._waiting), is_last=True)
        self._waiting.clear()

    def _write_chunk(self, plain: bytes, *, is_last: bool) -> None:
        nonce = self._key.nonce(self._index, is_last=is_last)
        self._raw.write(self._key.cipher.encrypt(nonce, plain, self._key.header))
        self._index += 1


class DecryptingReader:
    """A stream that can be read from any place. Raises KeyFileUnusable, EncryptedDataDamaged."""

    def __init__(self, raw: IO[bytes], secret: bytes) -> None:
        self._raw = raw
        header = raw.read(HEADER_BYTES)
        if len(header) < HEADER_BYTES:
            raise EncryptedDataDamaged
        self._key = _derive(secret, header[len(MAGIC) : len(MAGIC) + SALT_BYTES])
        if not hmac.compare_digest(self._key.header, header):
            raise KeyFileUnusable("this backup was made with another key: give the key file that it was made with")
        body = raw.seek(0, io.SEEK_END) - HEADER_BYTES
        self._count, rest = divmod(body, CHUNK_BYTES + TAG_BYTES)
        if 0 < rest < TAG_BYTES or body == 0:
            raise EncryptedDataDamaged
        self._count += rest > 0
        self._size = body - self._count * TAG_BYTES
        self._position = 0
        self._chunk: tuple[int, bytes] = (-1, b"")

    def seekable(self) -> bool:
        """Return True: zipfile begins at the end."""
        return True

    def tell(self) -> int:
        """Return the position in the decrypted content."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to another position of the decrypted content."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError("a position before the start of the backup")
        self._position = start + offset
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        """Return `size` bytes from the position on, fewer at the end."""
        end = self._size if size < 0 else min(self._position + size, self._size)
        found = bytearray()
        while self._position < end:
            index, offset = divmod(self._position, CHUNK_BYTES)
            block = self._read_chunk(index)[offset : offset + end - self._position]
            found += block
            self._position += len(block)
        return bytes(found)

    def close(self) -> None:
        """Do nothing: the file belongs to the caller."""

    def _read_chunk(self, index: int) -> bytes:
        if self._chunk[0] != index:
            self._raw.seek(HEADER_BYTES + index * (CHUNK_BYTES + TAG_BYTES))
            sealed = self._raw.read(CHUNK_BYTES + TAG_BYTES)
            nonce = self._key.nonce(index, is_last=index == self._count - 1)
            try:
                self._chunk = (index, self._key.cipher.decrypt(nonce, sealed, self._key.header))
            except (InvalidTag, ValueError) as error:
                raise EncryptedDataDamaged from error
        return self._chunk[1]


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
