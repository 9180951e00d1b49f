"""Encryption of a backup: AES-256-GCM in chunks, with a key made by scrypt from the content of a key file.

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
import secrets
from pathlib import Path
from typing import IO, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

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
