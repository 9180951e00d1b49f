"""Ids: tokens that may stand in a NATS subject, job keys, derived ids, and UUIDv7."""

import hashlib
import re
from typing import Annotated, NamedTuple

from msgspec import Meta

# A token stands between two dots of a NATS subject. A "$" at the end of the pattern would allow a trailing newline.
TOKEN_PATTERN = r"^[A-Za-z0-9_-]{1,64}(?![\s\S])"  # noqa: S105 - a subject token, not a secret
Token = Annotated[str, Meta(pattern=TOKEN_PATTERN, description="1 to 64 characters of A-Z a-z 0-9 _ -")]
_TOKEN = re.compile(TOKEN_PATTERN)


def is_token(text: str) -> bool:
    """Return whether `text` may be an owner, host, pool, endpoint, key id or job id."""
    return _TOKEN.match(text) is not None


def derive_job_id(owner: str, key: str) -> str:
    """Return the job id for an `Idempotency-Key`: 32 hex digits of sha256 over owner and key."""
    return hashlib.sha256(f"{owner}\0{key}".encode()).hexdigest()[:32]


def make_uuid7(unix_ms: int, entropy: bytes) -> str:
    """Make a UUIDv7 (RFC 9562, section 5.7) of 10 bytes of `entropy`; such ids sort by time."""
    number = (unix_ms & (2**48 - 1)) << 80 | int.from_bytes(entropy[:10], "big")
    number = number & ~(0xF << 76) | 0x7 << 76
    number = number & ~(0x3 << 62) | 0x2 << 62
    text = f"{number:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


class JobKey(NamedTuple):
    """The name of a job everywhere. Ids are unique for each owner, not across owners."""

    owner: str
    id: str
