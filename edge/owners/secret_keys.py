"""The keys that seal the secrets of an installation: a file of the edge, which is never in the broker.

Each line of the file is one key: 32 bytes in base64. The first key seals, every key opens. The id of a key is made from
the key, so that an edge recognizes a secret that was sealed with a key which it does not have.
"""

import base64
import binascii
import hashlib
import os
import uuid
from contextlib import suppress
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


def read_or_make_keys(path: Path, entropy: Entropy = os.urandom) -> SecretKeys:
    """Read the key file; create it with one key if it does not exist. Blocking. Raises SecretKeysUnusable."""
    try:
        if not path.exists():
            _create_once(path, f"{_HEADER}{base64.b64encode(entropy(KEY_BYTES)).decode()}\n")
        text = path.read_text(errors="replace")
    except OSError as error:
        raise SecretKeysUnusable(
            f"the key file {path} cannot be read or created ({error.strerror}): correct its owner and permissions, or "
            "set [secrets] key_file"
        ) from error
    lines = [line.strip() for line in text.splitlines()]
    keys = [_parse_key(path, line) for line in lines if line and not line.startswith("#")]
    if not keys:
        raise SecretKeysUnusable(f"{path} has no key: restore it from a copy, or delete it and set all secrets again")
    return SecretKeys(keys, entropy)


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
