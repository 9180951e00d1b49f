"""Sessions of the console: what its cookie contains, and one-time tickets that sign a browser in.

A session holds its key's id, its scopes and its expiry, signed with the installation's secret, so that any edge can
verify it. It ends when the key is revoked, or when the key no longer accepts the secret that it had at sign-in.
A ticket is signed in the same way. A row of AGREED records that it was used, so it works once, at any edge.
"""

import base64
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec
from msgspec import Struct, structs

from bus.interface import RevisionConflict, Table
from edge.core.clock import Clock, Entropy
from edge.core.signed_urls import PurposeHmac
from schemas.auth import ApiKey, Scope
from schemas.ids import Token
from schemas.installation import InstallationConstant

SESSION_PREFIX = "lamps_"
SESSION_LIFETIME = timedelta(days=14)
TICKET_LIFETIME = timedelta(minutes=15)
_TICKET_BYTES = 16
_USED_TICKETS = "ticket."  # the stored prefix of the rows of used tickets
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


class _TicketPayload(Struct, frozen=True, array_like=True):
    id: Token
    key: Token
    scopes: tuple[Scope, ...]
    expires: int  # seconds since 1970


class SessionIssuer:
    """Issues and verifies sessions and tickets. `get_key` returns the active key of an id; it may be seconds old.

    `constants`: AGREED, which has the used tickets.
    """

    def __init__(
        self, secret: bytes, get_key: GetKey, clock: Clock, entropy: Entropy, constants: Table[InstallationConstant]
    ) -> None:
        self._hmac = PurposeHmac(secret, "session")
        self._ticket_hmac = PurposeHmac(secret, "ticket")
        self._constants = constants
        self._get_key = get_key
        self._clock = clock
        self._entropy = entropy

    def start(self, key: ApiKey) -> Session:
        """Return a session with the scopes of `key`. It does not outlast the key."""
        expires_at = self._clock() + SESSION_LIFETIME
        if key.expires_at is not None:
            expires_at = min(expires_at, key.expires_at)
        payload = _SessionPayload(
            key.id, key.scopes, key.secret_sha256[:_SECRET_MARK_LENGTH], int(expires_at.timestamp())
        )
        text = _encode(payload)
        return Session(f"{SESSION_PREFIX}{text}.{self._hmac.sign(text)}", datetime.fromtimestamp(payload.expires, UTC))

    async def verify(self, text: str) -> ApiKey | None:
        """Return the key of a session, with the session's scopes and expiry. Raises BusError.

        None: the session is invalid or has ended, or its key was revoked, lost a scope, or rotated past its grace time.
        """
        body, _, signature = text.removeprefix(SESSION_PREFIX).partition(".")
        if not text.startswith(SESSION_PREFIX) or not self._hmac.verify(signature, body):
            return None
        try:
            payload = msgspec.json.decode(_decode_text(body), type=_SessionPayload)
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
        """Return a ticket that signs one browser in with the scopes of `key`."""
        expires = int((self._clock() + TICKET_LIFETIME).timestamp())
        text = _encode(_TicketPayload(self._entropy(_TICKET_BYTES).hex(), key.id, key.scopes, expires))
        return Session(f"{text}.{self._ticket_hmac.sign(text)}", datetime.fromtimestamp(expires, UTC))

    async def redeem_ticket(self, text: str) -> ApiKey | None:
        """Return the key of a ticket, which ends with that. Raises BusError.

        None: the ticket is invalid, used or expired, or its key was revoked.
        """
        body, _, signature = text.partition(".")
        if not self._ticket_hmac.verify(signature, body):
            return None
        try:
            payload = msgspec.json.decode(_decode_text(body), type=_TicketPayload)
        except msgspec.DecodeError:  # issued by a newer version
            return None
        now = self._clock()
        if now >= datetime.fromtimestamp(payload.expires, UTC):
            return None
        try:
            await self._constants.create(_USED_TICKETS + payload.id, InstallationConstant("", now))
        except RevisionConflict:
            return None
        await self._forget_used_tickets(now)
        key = await self._get_key(payload.key)
        if key is None or not all(key.allows(scope) for scope in payload.scopes):
            return None
        return structs.replace(key, scopes=payload.scopes)

    async def _forget_used_tickets(self, now: datetime) -> None:
        """Delete the rows of used tickets that have expired since."""
        for name, row in (await self._constants.rows(_USED_TICKETS)).items():
            if now - row.value.at > TICKET_LIFETIME:
                await self._constants.delete(name)


def _encode(payload: Struct) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(payload)).rstrip(b"=").decode()


def _decode_text(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
