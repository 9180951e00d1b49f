"""Signatures of the Standard Webhooks specification, version 1: HMAC-SHA256 over id, timestamp and body."""

import base64
import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime

from schemas.webhook import SECRET_PREFIX, decode_secret

SECRET_LENGTHS_BYTES = range(24, 65)  # required by the specification


def make_secret(entropy: bytes) -> str:
    """Return `entropy` (24 to 64 bytes) in the text form of a secret."""
    return SECRET_PREFIX + base64.b64encode(entropy).decode()


def is_secret(text: str) -> bool:
    """Return whether `text` is `whsec_` and 24 to 64 bytes in base64."""
    return len(decode_secret(text)) in SECRET_LENGTHS_BYTES


def signature_headers(message_id: str, at: datetime, body: bytes, *secrets: str) -> Mapping[str, str]:
    """Return the three headers that prove who sent `body`, with one signature for each secret."""
    timestamp = str(int(at.timestamp()))
    signed = b".".join((message_id.encode(), timestamp.encode(), body))
    signatures = " ".join(f"v1,{_digest(secret, signed)}" for secret in secrets)
    return {"webhook-id": message_id, "webhook-timestamp": timestamp, "webhook-signature": signatures}


def _digest(secret: str, signed: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
