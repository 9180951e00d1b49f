"""What a resumable upload is asked for and brought in, as values."""

from collections.abc import AsyncIterator

from msgspec import Struct

from schemas.asset import Digest


class Wanted(Struct, frozen=True, kw_only=True):
    """An upload as a client asks for it. `length` None: it says so later. `metadata`: to be told again, verbatim."""

    name: str
    media_type: str
    length: int | None = None
    expected: Digest | None = None
    metadata: str = ""


class Checksum(Struct, frozen=True):
    """What a piece must hash to, by one of hashlib's algorithms."""

    algorithm: str
    digest: bytes


class Piece(Struct, frozen=True, kw_only=True):
    """What one request brings: `chunks` from `offset` on. `size` where it was said, `length` where the upload's was
    not said before. A piece with a checksum counts whole or not at all."""

    offset: int
    chunks: AsyncIterator[bytes]
    size: int | None = None
    length: int | None = None
    checksum: Checksum | None = None
