"""The asset store as the edge sees it: files named by their sha256, whole or not there at all.

StoreError
├── DigestMismatch   the body is not what its name promised (422)
├── TooLarge         more bytes than the caller allowed (413)
├── StoreFull        no space or quota left for it (507)
└── StoreBroken      the disk or the network folder failed (503)

Whatever is raised, a cancellation too, nothing of the body stays behind.
"""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from schemas.asset import DIGEST_SCHEME, Digest, InvalidDigest, is_digest

BLOCK_BYTES = 1024 * 1024  # bytes; below it the hop to a thread costs more than the work, above it only memory


class StoredAsset(Struct, frozen=True):
    """A file that is durable in the store. `path` is where this machine can open it, None where only `read` can."""

    sha256: Digest
    bytes: int
    path: Path | None = None


class Survey(Struct, frozen=True):
    """What the store says of itself.

    `fingerprint` is written once, at the store's first opening: a second edge that sees another one has another store.
    `trashed` is what `trash` took and nobody has restored or erased, so that an edge that crashed in between goes on.
    """

    fingerprint: str
    free_bytes: int
    trashed: tuple[Digest, ...]


class StoreError(Exception):
    """Something kept the store from doing as told."""


class DigestMismatch(StoreError):
    """The body's sha256 is not the expected one."""

    def __init__(self, expected: Digest, got: Digest) -> None:
        super().__init__(f"the body's sha256 is {got}, not {expected}: it was damaged on the way or is another file")
        self.expected, self.got = expected, got


class AssetTooLarge(StoreError):
    """The body went past its limit."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the file has more than the {limit} bytes allowed: make it smaller or ask for a higher limit")
        self.limit = limit


class AssetStoreFull(StoreError):
    """No space is left for the body."""

    def __init__(self) -> None:
        super().__init__("the asset store is full: delete assets or give it more space, then try again")


class StoreBroken(StoreError):
    """The medium refused a call."""


def require_digest(sha256: Digest) -> Digest:
    """`sha256`, which is to become part of a path: looked at here again, whatever callers promise."""
    if not is_digest(sha256):
        raise InvalidDigest(DIGEST_SCHEME + sha256)
    return sha256


class BlobStore(Protocol):
    """Seven verbs. Every digest given must be one (`schemas.asset.is_digest`): it becomes part of a path."""

    async def write(self, chunks: AsyncIterator[bytes], expected: Digest | None, limit: int) -> StoredAsset:
        """Take a body of at most `limit` bytes and return when it is durable.

        A digest that is there already is verified to the last byte all the same and not stored twice; bytes in the
        trash do not count as there. Raises StoreError, and what `chunks` raises.
        """
        ...

    async def stat(self, sha256: Digest) -> StoredAsset | None:
        """The file, or None where the store has none (or has it in the trash)."""
        ...

    def read(self, sha256: Digest, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """Its bytes from `start` to before `stop`, in blocks. Raises KeyError where `stat` says None."""
        ...

    async def trash(self, sha256: Digest) -> bool:
        """Move it to the trash, where `stat` and `read` do not see it; False where there was none."""
        ...

    async def restore(self, sha256: Digest) -> bool:
        """Move it back from the trash; False where the trash has none."""
        ...

    async def erase(self, sha256: Digest) -> bool:
        """Remove it from the trash for good; False where the trash has none. Never touches what `stat` sees."""
        ...

    async def survey(self) -> Survey:
        """Fingerprint, free bytes, and what waits in the trash."""
        ...


class DirectTransfer(Protocol):
    """How bytes pass a store by without going through the edge's hands once more."""

    async def import_file(self, path: Path, sha256: Digest) -> StoredAsset:
        """Take a durable file of this machine whose digest is known to be right; `path` stays. Twice is once.

        Raises StoreError.
        """
        ...

    async def presign_url(self, sha256: Digest, ttl: timedelta) -> str | None:
        """A URL under which anybody can fetch the bytes for `ttl`; None where the store can make none."""
        ...


class AssetStore(BlobStore, DirectTransfer, Protocol):
    """What the edge is given."""
