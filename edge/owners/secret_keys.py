"""The keys that seal the secrets of an installation: a file of the edge, which is never in the broker.

Each line of the file is one key: 32 bytes in base64. The first key seals, every key opens. The id of a key is made from
the key, so that an edge recognizes a secret that was sealed with a key which it does not have.

To replace the key, a new one is written before the old one, all secrets are sealed again, and the old one is removed
later. The file is always whole, and each of its states opens every secret: a crash in between loses nothing.
"""

import base64
import binascii
import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bus.secret_files import atomic_write, fsync_folder
from edge.core.clock import Entropy

KEY_BYTES = 32
NONCE_BYTES = 12
_HEADER = """\
# Keys that seal the secrets of this installation. Every edge needs the same file. Without it, secrets are lost.
# The first key seals, all keys open. The secrets page of the documentation says how to replace a key.
"""


class SecretKeysUnusable(Exception):
    """The key file cannot be used. The message says why and what to do."""


class SecretUnreadable(Exception):
    """The sealed bytes were not made by the key that they name, or were changed or moved to another name."""


class SealedText(NamedTuple):
    """A text that was encrypted with the key `key_id`."""

    key_id: str
    nonce: bytes
    sealed: bytes


class SecretKeys:
    """The keys of one edge, in the order of its file."""

    def __init__(self, keys: list[bytes], entropy: Entropy) -> None:
        self._ciphers = {_key_id(key): AESGCM(key) for key in keys}
        self._entropy = entropy

    @property
    def sealing_id(self) -> str:
        """The id of the first key, which seals new values."""
        return next(iter(self._ciphers))

    @property
    def old_ids(self) -> tuple[str, ...]:
        """The ids of the other keys, which only open."""
        return tuple(self._ciphers)[1:]

    def __contains__(self, key_id: str) -> bool:
        return key_id in self._ciphers

    def seal(self, name: str, text: str) -> SealedText:
        """Encrypt `text`, which can be opened only under the same `name`."""
        nonce = self._entropy(NONCE_BYTES)
        sealed = self._ciphers[self.sealing_id].encrypt(nonce, text.encode(), name.encode())
        return SealedText(self.sealing_id, nonce, sealed)

    def open(self, name: str, sealed: SealedText) -> str:
        """Decrypt what `seal` made with a key that is in the file. Raises SecretUnreadable."""
        try:
            return self._ciphers[sealed.key_id].decrypt(sealed.nonce, sealed.sealed, name.encode()).decode()
        except (InvalidTag, ValueError) as error:
            raise SecretUnreadable(name) from error


class SecretKeyFile:
    """The key file of one edge, which another edge or a person may change meanwhile. All methods block.

    It is created with one key if it does not exist at the start. Raises SecretKeysUnusable.
    """

    def __init__(self, path: Path, entropy: Entropy = os.urandom) -> None:
        self.path = path
        self._entropy = entropy
        self.keys = read_or_make_keys(path, entropy)
        self._version = _file_version(path)

    def reload(self) -> None:
        """Read the file again if it has changed. Raises SecretKeysUnusable: `keys` then stays as it is."""
        version = _file_version(self.path)
        if not version:  # a new file would not open what the keys of the old one sealed
            raise SecretKeysUnusable(f"the key file {self.path} is missing: restore it from a copy")
        if version != self._version:
            self.keys = read_or_make_keys(self.path, self._entropy)
            self._version = version

    def add_key(self) -> None:
        """Put a new key before the others, unless an older one is still in the file. Raises SecretKeysUnusable."""
        with self._lock():
            self.reload()
            if not self.keys.old_ids:
                self._write([base64.b64encode(self._entropy(KEY_BYTES)).decode(), *_list_keys(self.path)])

    def remove_old_keys(self) -> None:
        """Keep only the first key. Raises SecretKeysUnusable."""
        with self._lock():
            self.reload()
            if self.keys.old_ids:
                self._write(_list_keys(self.path)[:1])

    def age_s(self, now: float) -> float:
        """Return the seconds since the file was changed. `now`: as `time.time` tells it."""
        return now - self.path.stat().st_mtime

    def _write(self, lines: list[str]) -> None:
        atomic_write(self.path.resolve(), "\n".join((_HEADER.strip(), *lines, "")))
        self.keys = read_or_make_keys(self.path, self._entropy)
        self._version = _file_version(self.path)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Keep other edges that share the file from changing it. Raises SecretKeysUnusable in place of OSError."""
        try:
            with self.path.with_name(f"{self.path.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise SecretKeysUnusable(
                f"the key file {self.path} cannot be changed ({error.strerror}): let the edge write to its folder, or "
                "change the file by hand as docs/secrets.md says"
            ) from error


def _file_version(path: Path) -> tuple[int, ...]:
    """Return what differs after each change of the file; nothing if it is missing."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def read_or_make_keys(path: Path, entropy: Entropy = os.urandom) -> SecretKeys:
    """Read the key file; create it with one key if it does not exist. Blocking. Raises SecretKeysUnusable."""
    try:
        if not path.exists():
            _create_once(path, f"{_HEADER}{base64.b64encode(entropy(KEY_BYTES)).decode()}\n")
        lines = _list_keys(path)
    except OSError as error:
        raise SecretKeysUnusable(
            f"the key file {path} cannot be read or created ({error.strerror}): correct its owner and permissions, or "
            "set [secrets] key_file"
        ) from error
    keys = [_parse_key(path, line) for line in lines]
    if not keys:
        raise SecretKeysUnusable(f"{path} has no key: restore it from a copy, or delete it and set all secrets again")
    return SecretKeys(keys, entropy)


def _list_keys(path: Path) -> list[str]:
    """Return the lines of the file that are keys. Raises OSError."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _create_once(path: Path, text: str) -> None:
    """Create the file unless another edge, with which this one may share the folder, creates it at the same time."""
    new = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    atomic_write(new, text)
    try:
        with suppress(FileExistsError):
            path.hardlink_to(new)
    finally:
        new.unlink()
    fsync_folder(path.parent)


def _parse_key(path: Path, line: str) -> bytes:
    try:
        key = base64.b64decode(line, validate=True)
    except binascii.Error:
        key = b""
    if len(key) != KEY_BYTES:
        raise SecretKeysUnusable(
            f"{path} has a line that is not a key: each needs {KEY_BYTES} bytes in base64 (openssl rand -base64 32)"
        )
    return key


def _key_id(key: bytes) -> str:
    return hashlib.sha256(b"lamplighter secret key\0" + key).hexdigest()[:12]
