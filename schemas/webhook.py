"""Webhooks: an owner's secrets and owner-wide webhooks, the log of deliveries, and signatures.

Signatures are those of the Standard Webhooks specification, version 1: HMAC-SHA256 over id, timestamp and body.
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from msgspec import Struct, field

from schemas.job import FINAL_STATUSES, Job, Moment, Status, is_token

LOGGED_ATTEMPT_LIMIT = 20  # of one delivery, in its log
DISABLED_URL_LIMIT = 100  # URLs of one owner
OWNER_WEBHOOK_LIMIT = 20  # owner-wide webhooks of one owner
SECRET_PREFIX = "whsec_"  # noqa: S105 - the public prefix of a secret


def decode_secret(text: str) -> bytes:
    """Return the bytes of a secret in the format of Standard Webhooks (`whsec_` and base64); empty if it is invalid."""
    if not text.startswith(SECRET_PREFIX):
        return b""
    try:
        return base64.b64decode(text[len(SECRET_PREFIX) :], validate=True)
    except ValueError:  # binascii.Error, and characters that are not ASCII
        return b""


class WebhookConfig(Struct, frozen=True, kw_only=True):
    """A row of HOOKS, under the owner. Secrets are `whsec_` and base64.

    `previous` signs too until `previous_until`. `disabled_urls`: URLs that answered 410, and when.
    """

    secret: str
    created_at: Moment = field(name="made_at")
    previous: str | None = None
    previous_until: Moment | None = None
    disabled_urls: dict[str, Moment] = field(default_factory=dict, name="disabled")

    def signing_secrets(self, now: datetime) -> tuple[str, ...]:
        """Return the secrets to sign with at `now`, the newest first."""
        rotating = self.previous is not None and self.previous_until is not None and now < self.previous_until
        return (self.secret, self.previous) if rotating and self.previous else (self.secret,)


class OwnerWebhook(Struct, frozen=True, kw_only=True):
    """An owner-wide webhook: it reports final states of the owner's jobs. Empty `endpoints` and `states`: all."""

    id: str
    url: str
    created_at: Moment
    endpoints: tuple[str, ...] = ()
    states: tuple[Status, ...] = ()

    def matches(self, job: Job) -> bool:
        """Return whether the state of `job` is to be delivered."""
        return (
            job.status in FINAL_STATUSES
            and (not self.states or job.status in self.states)
            and (not self.endpoints or job.endpoint in self.endpoints)
        )


class OwnerWebhooks(Struct, frozen=True, kw_only=True):
    """A row of OWNER_HOOKS, under the owner: at most OWNER_WEBHOOK_LIMIT webhooks, oldest first."""

    webhooks: tuple[OwnerWebhook, ...] = ()


class DeliveryState(StrEnum):
    """The state of the delivery of one webhook message."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"  # no attempt is left, or the URL is refused
    DISABLED = "disabled"  # the receiver answered 410, to this or an earlier delivery; or its webhook was removed


class DeliveryAttempt(Struct, frozen=True):
    """One request. `status`: the HTTP status of the receiver's answer; `error`: the reason if it did not answer."""

    at: Moment
    took_s: float
    status: int | None = None
    error: str | None = None


class DeliveryLogRow(Struct, frozen=True, kw_only=True):
    """A row of DELIVERED: one state of a job for one webhook. `revision` names the state, in all of STATE.

    `webhook`: the id of the owner-wide webhook; empty for the webhook of the job.
    `attempts`: the last 20 requests. `failed_attempts`: those that failed since it was last sent or replayed.
    `replays`: the number of replays.
    """

    job_id: str
    revision: int
    status: Status
    url: str
    created_at: Moment
    state: DeliveryState = DeliveryState.PENDING
    attempts: tuple[DeliveryAttempt, ...] = field(default=(), name="tries")
    failed_attempts: int = field(default=0, name="failed")
    next_attempt_at: Moment | None = field(default=None, name="next_at")
    replays: int = 0
    webhook: str = ""

    @property
    def id(self) -> str:
        """The `webhook-id`, the same at every attempt and replay. Revisions are counted over all jobs."""
        return format_delivery_id(DeliveryId(self.job_id, self.revision, self.webhook))


class DeliveryId(NamedTuple):
    """The state and the webhook of a delivery. `webhook` is empty for the webhook of the job."""

    job_id: str
    revision: int
    webhook: str = ""


def format_delivery_id(delivery: DeliveryId) -> str:
    """Return `<job id>.<revision>`, with `.<webhook>` for an owner-wide webhook."""
    job_id, revision, webhook = delivery
    return f"{job_id}.{revision}.{webhook}" if webhook else f"{job_id}.{revision}"


def parse_delivery_id(text: str) -> DeliveryId | None:
    """Return what the id of a delivery names; None when it is invalid."""
    job_id, revision, *webhook = text.split(".")[:4] if "." in text else ("", "")
    is_valid = is_token(job_id) and revision.isdecimal() and len(revision) < 20
    if not is_valid or len(webhook) > 1 or not all(is_token(part) for part in webhook):
        return None
    return DeliveryId(job_id, int(revision), *webhook)


def delivery_key(owner: str, delivery: DeliveryId) -> str:
    """Return the key in bucket DELIVERED."""
    return f"{owner}.{format_delivery_id(delivery)}"


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
