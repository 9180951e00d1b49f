"""Sessions of the console: what its cookie contains, and one-time tickets that sign a browser in.

A session holds its key's id, its scopes and its expiry, signed with the installation's secret, so that any edge can
verify it. It ends when the key is revoked, or when the key no longer accepts the secret that it had at sign-in.
Tickets are known only to the edge that issued them, and are lost when it restarts.
"""

import base64
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec
from msgspec import Struct, structs

from edge.core.clock import Clock, Entropy
from edge.core.signed_urls import PurposeHmac
from schemas.auth import ApiKey, Scope, hash_secret
from schemas.ids import Token
from schemas.problems import ProblemError

SESSION_PREFIX = "lamps_"
SESSION_LIFETIME = timedelta(days=14)
TICKET_LIFETIME = timedelta(minutes=15)
_TICKET_LIMIT = 1000  # tickets that were issued and not used
_TICKET_BYTES = 24
_SECRET_MARK_LENGTH = 16  # digits of the secret's digest that a session carries

GetKey = Callable[[str], Awaitable[ApiKey | None]]


class Session(NamedTuple):
    """The text of a new session or of a new ticket, and when it expires."""

    text: str
    expires_at: datetime


class _SessionPayload(Struct, frozen=True, array_like=True):
    key: Token
    scopes: tuple[Scope, ...]
    secret_mark: str
    expires: int  # seconds since 1970


class _Ticket(NamedTuple):
    key: ApiKey
    expires_at: datetime


class SessionIssuer:
    """Issues and verifies sessions. `get_key` returns the active key of an id; its cache may be a few seconds old."""

    def __init__(self, secret: bytes, get_key: GetKey, clock: Clock, entropy: Entropy) -> None:
        self._hmac = PurposeHmac(secret, "session")
        self._get_key = get_key
        self._clock = clock
        self._entropy = entropy
        self._tickets: dict[str, _Ticket] = {}

    def start(self, key: ApiKey) -> Session:
        """Return a session with the scopes of `key`. It does not outlast the key."""
        expires_at = self._clock() + SESSION_LIFETIME
        if key.expires_at is not None:
            expires_at = min(expires_at, key.expires_at)
        payload = _SessionPayload(
            key.id, key.scopes, key.secret_sha256[:_SECRET_MARK_LENGTH], int(expires_at.timestamp())
        )
        text = base64.urlsafe_b64encode(msgspec.json.encode(payload)).rstrip(b"=").decode()
        return Session(f"{SESSION_PREFIX}{text}.{self._hmac.sign(text)}", datetime.fromtimestamp(payload.expires, UTC))

    async def verify(self, text: str) -> ApiKey | None:
        """Return the key of a session, with the session's scopes and expiry. Raises BusError.

        None: the session is invalid or has ended, or its key was revoked, lost a scope, or rotated past its grace time.
        """
        body, _, signature = text.removeprefix(SESSION_PREFIX).partition(".")
        if not text.startswith(SESSION_PREFIX) or not self._hmac.verify(signature, body):
            return None
        try:
            payload = msgspec.json.decode(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)), type=_SessionPayload)
        except msgspec.DecodeError:  # issued by a newer version
            return None
        expires_at, now = datetime.fromtimestamp(payload.expires, UTC), self._clock()
        key = await self._get_key(payload.key) if now < expires_at else None
        if key is None or not all(key.allows(scope) for scope in payload.scopes):
            return None
        if not any(digest.startswith(payload.secret_mark) for digest in key.accepted_digests(now)):
            return None
        return structs.replace(key, scopes=payload.scopes, expires_at=expires_at)

    def issue_ticket(self, key: ApiKey) -> Session:
        """Return a ticket that signs one browser in with the scopes of `key`. Raises ProblemError `rate_limited`."""
        now = self._clock()
        for name in [name for name, ticket in self._tickets.items() if ticket.expires_at <= now]:
            del self._tickets[name]
        if len(self._tickets) >= _TICKET_LIMIT:
            raise ProblemError(
                "rate_limited", f"{_TICKET_LIMIT} sign-in links are unused: wait some minutes", retry_after_s=60
            )
        text = self._entropy(_TICKET_BYTES).hex()
        expires_at = now + TICKET_LIFETIME
        self._tickets[hash_secret(text)] = _Ticket(key, expires_at)
        return Session(text, expires_at)

    async def redeem_ticket(self, text: str) -> ApiKey | None:
        """Return the key of a ticket and remove the ticket. None: unknown, used, expired, or its key was revoked."""
        ticket = self._tickets.pop(hash_secret(text), None)
        if ticket is None or ticket.expires_at <= self._clock():
            return None
        key = await self._get_key(ticket.key.id)
        if key is None or not all(key.allows(scope) for scope in ticket.key.scopes):
            return None
        return structs.replace(key, scopes=ticket.key.scopes)
