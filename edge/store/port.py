"""The port of the asset store: files named by their sha256, present as a whole or not at all.

StoreError
├── DigestMismatch   the body does not have the expected sha256 (422)
├── AssetTooLarge    more bytes than the caller allowed (413)
├── AssetStoreFull   no space or disk quota is left (507)
├── StoreBroken      the disk, the network folder or the bucket failed (503)
├── UploadChanged    another edge has added bytes to the upload meanwhile (409)
└── UploadRemoved    the upload was removed at another edge meanwhile (404)

After any error, and after a cancellation, nothing of the body remains in the store.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from schemas.asset import DIGEST_SCHEME, Digest, InvalidDigest, is_digest

BLOCK_BYTES = 1024 * 1024  # smaller costs more in thread switches than in work; larger only costs memory


class StoredAsset(Struct, frozen=True):
    """A durable file in the store. `path`: where this machine can open it; None if only `read` can."""

    sha256: Digest
    bytes: int
    path: Path | None = None


class Survey(Struct, frozen=True):
    """A store's identity and state.

    `fingerprint`: written once, when the store is first opened. An edge that reads another one has another store.
    `trashed`: digests in the trash, neither restored nor erased. An edge resumes with them after a crash.
    """

    fingerprint: str
    trashed: tuple[Digest, ...]


class StoreError(Exception):
    """Base class of what a store may raise."""


class DigestMismatch(StoreError):
    """The body's sha256 is not the expected one."""

    def __init__(self, expected: Digest, got: Digest) -> None:
        super().__init__(
            f"the body's sha256 is {got}, not {expected}: it was damaged in transit, or it is another file"
        )
        self.expected, self.got = expected, got


class AssetTooLarge(StoreError):
    """The body is larger than its limit."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the file has more than the {limit} bytes allowed: make it smaller or ask for a higher limit")
        self.limit = limit


class AssetStoreFull(StoreError):
    """No space is left for the body."""

    def __init__(self) -> None:
        super().__init__("the asset store is full: delete assets or give it more space, then try again")


class StoreBroken(StoreError):
    """The disk, the network folder or the bucket failed."""


class UploadChanged(StoreError):
    """Another edge has added bytes to the upload since this edge read its state."""

    def __init__(self) -> None:
        super().__init__("another edge has received bytes of this upload: ask for its offset, and continue from there")


class UploadRemoved(StoreError):
    """The upload was removed at another edge while this edge received bytes."""

    def __init__(self) -> None:
        super().__init__("the upload was removed while its bytes arrived: start it again")


def require_digest(sha256: Digest) -> Digest:
    """Return `sha256` if it is a digest. Raises InvalidDigest. Checked here because it becomes part of a path."""
    if not is_digest(sha256):
        raise InvalidDigest(DIGEST_SCHEME + sha256)
    return sha256


class BlobStore(Protocol):
    """The calls on one store. Every `sha256` must satisfy `schemas.asset.is_digest`: it becomes part of a path."""

    async def write(self, chunks: AsyncIterator[bytes], expected: Digest | None, limit: int) -> StoredAsset:
        """Store a body of at most `limit` bytes; return when it is durable.

        A body whose digest is stored already is verified to its last byte, and not stored twice. Bytes in the trash do
        not count as stored. Raises StoreError, and errors of `chunks`.
        """
        ...

    async def stat(self, sha256: Digest) -> StoredAsset | None:
        """Return the file, or None if it is not in the store or in the trash."""
        ...

    def read(self, sha256: Digest, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """Yield the bytes from `start` to before `stop` in blocks. Raises KeyError if `stat` returns None."""
        ...

    async def trash(self, sha256: Digest) -> bool:
        """Move the file to the trash, where `stat` and `read` do not see it. Return False if it does not exist."""
        ...

    async def restore(self, sha256: Digest) -> bool:
        """Move the file back from the trash. Return False if it is not in the trash."""
        ...

    async def erase(self, sha256: Digest) -> bool:
        """Delete the file from the trash. Return False if it is not in the trash. Never touches what `stat` sees."""
        ...

    async def survey(self) -> Survey:
        """Return the fingerprint and the content of the trash."""
        ...


class SharedObject(Struct, frozen=True):
    """An object as a listing shows it. `modified`: by the clock of the store."""

    name: str
    bytes: int
    modified: datetime


class SharedObjects(Protocol):
    """Small objects of unfinished uploads, which all edges share. Blocking.

    Names are tokens between slashes. An object is durable when `create` returns. Every call raises StoreError.
    """

    def create(self, name: str, body: bytes) -> bool:
        """Create the object; return False if its name exists. Of several callers exactly one creates it."""
        ...

    def read(self, name: str) -> bytes:
        """Return the body. Raises KeyError if the object does not exist."""
        ...

    def list(self, folder: str = "") -> Sequence[SharedObject]:
        """List all objects below `folder`, which may be in other folders there."""
        ...

    def delete(self, names: Iterable[str]) -> None:
        """Delete the objects that exist."""
        ...


class DirectTransfer(Protocol):
    """Transfers that do not pass the bytes through the edge a second time."""

    async def import_file(self, path: Path, sha256: Digest) -> StoredAsset:
        """Store a durable local file whose digest the caller has checked; `path` stays. Idempotent.

        Raises StoreError.
        """
        ...

    async def presign_url(self, sha256: Digest, ttl: timedelta) -> str | None:
        """Return a URL that serves the bytes without a key for `ttl`; None if the store cannot make one."""
        ...

    def upload_objects(self) -> SharedObjects | None:
        """Return where edges share unfinished uploads; None if the store cannot hold them."""
        ...


class AssetStore(BlobStore, DirectTransfer, Protocol):
    """The store as the edge uses it."""
