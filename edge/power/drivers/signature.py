"""Standard Webhooks signatures: HMAC-SHA256 over id, timestamp and body (the specification of that name, version 1)."""

import base64
import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime

PREFIX = "whsec_"


def sign(secret: str, message_id: str, at: datetime, body: bytes) -> Mapping[str, str]:
    """The three headers that prove who sent `body`; `secret` is `whsec_…`. A timestamp in whole seconds."""
    key = base64.b64decode(secret.removeprefix(PREFIX))
    timestamp = str(int(at.timestamp()))
    signed = b".".join((message_id.encode(), timestamp.encode(), body))
    digest = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return {"webhook-id": message_id, "webhook-timestamp": timestamp, "webhook-signature": f"v1,{digest}"}
