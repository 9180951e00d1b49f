"""Credentials that are signed and not stored: URLs, short-lived tokens, and sessions of the console.

Each holds what it allows and its expiry, signed with the installation's secret, so that any edge can verify it.

- A signed URL has an owner, a path and an expiry time, and needs no API key. A URL that was made for an API key
  carries the key's id and stops working when that key is revoked. URLs in webhook deliveries, URLs of the keyless port
  and URLs of earlier releases carry no id: they work until they expire.
- A token is for clients that cannot send a header: EventSource, a browser's WebSocket, `<video src>`. Its key is read
  at each use, so that revoking the key also revokes its tokens.
- A session is what the cookie of the console contains. It ends when the key is revoked, or when the key no longer
  accepts the secret that it had at sign-in.
- A ticket signs a browser in. A row of AGREED records that it was used, so it works once, at any edge.
"""

import base64
import hmac
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Annotated, NamedTuple, Protocol
from urllib.parse import quote, urlencode

import msgspec
from msgspec import Meta, Struct, structs

from bus.interface import RevisionConflict, Table
from edge.core.clock import Clock, Entropy
from schemas.credentials import ApiKey, Scope
from schemas.installation import InstallationConstant
from schemas.job import Token, is_token
from schemas.problems import ProblemError

SIGNATURE_PARAMETER = "signature"
NO_KEY = "signing"  # the key id of requests by a URL that carries none
_KEY_PARAMETER = "for"
SIGNED_URL_PARAMETERS = frozenset({"expires", _KEY_PARAMETER, SIGNATURE_PARAMETER})  # and the owner
_EXPIRY_STEPS = 4
# The scopes of a request by a signed URL, valid only for the path that was signed.
_SIGNED_URL_SCOPES = (Scope.JOBS_READ, Scope.ASSETS_READ)


class UrlSettings(Struct, frozen=True):
    """The `[urls]` section: URLs that work without a key."""

    ttl_s: Annotated[float, Meta(gt=0)] = 3600.0
    """The minimum time for which the file URLs of a job work."""
    base: str = ""
    """Prefix of these URLs, as in `https://edge.example`. Empty: they are paths on the edge that answered."""


class SignUrl(Protocol):
    """A function that makes a signed URL for `path` of `owner`."""

    def __call__(self, owner: str, path: str, key_id: str | None) -> str:
        """Return the URL. `path` is already percent-encoded. `key_id`: the key whose revocation ends the URL."""
        ...


class PurposeHmac:
    """HMAC-SHA256 with the installation's secret, separated by purpose."""

    def __init__(self, secret: bytes, purpose: str) -> None:
        self._secret = secret
        self._purpose = purpose

    def sign(self, *texts: str) -> str:
        """Return 43 characters of base64url. No text may contain a line feed: it is the separator."""
        message = "\n".join((self._purpose, *texts)).encode()
        return base64.urlsafe_b64encode(hmac.digest(self._secret, message, "sha256")).rstrip(b"=").decode()

    def verify(self, signature: str, *texts: str) -> bool:
        """Return whether `signature` belongs to `texts`; the comparison takes constant time."""
        return hmac.compare_digest(signature.encode(), self.sign(*texts).encode())


class _UrlClaim(NamedTuple):
    owner: str
    expires: int
    key_id: str | None

    def signed_texts(self, path: str) -> tuple[str, ...]:
        """Return the texts that the signature covers."""
        key_ids = () if self.key_id is None else (self.key_id,)
        return path, self.owner, str(self.expires), *key_ids


class UrlSigner:
    """Makes and verifies signed URLs. All edges share the secret, so each verifies the URLs of the others."""

    def __init__(self, secret: bytes, clock: Clock, settings: UrlSettings) -> None:
        self._hmac = PurposeHmac(secret, "url")
        self._clock = clock
        self._settings = settings

    def sign_url(self, owner: str, path: str, key_id: str | None = None) -> str:
        """Return `path` with owner, expiry, key id and signature as its query. It works for `ttl_s` to 1.25 `ttl_s`.

        The expiry is rounded up, so that a page that polls the job every second gets the same URL each time and its
        `<video>` keeps playing.
        """
        step = self._settings.ttl_s / _EXPIRY_STEPS
        expires = ceil(ceil((self._clock().timestamp() + self._settings.ttl_s) / step) * step)
        signature = self._hmac.sign(*_UrlClaim(owner, expires, key_id).signed_texts(path))
        key = {} if key_id is None else {_KEY_PARAMETER: key_id}
        query = urlencode({"owner": owner, "expires": expires, **key, SIGNATURE_PARAMETER: signature})
        return f"{self._settings.base.rstrip('/')}{path}?{query}"

    def key_for_url(self, path: str, query: Mapping[str, str]) -> ApiKey | None:
        """Return a read-only key for a GET of `path` (decoded), or None if the signature is wrong or has expired.

        The id of the returned key is the id of the key that the URL was made for, or NO_KEY.
        """
        claim = _parse_claim(query)
        now = self._clock()
        if claim is None or claim.expires <= now.timestamp():
            return None
        if not self._hmac.verify(query.get(SIGNATURE_PARAMETER, ""), *claim.signed_texts(quote(path))):
            return None
        ends = now + timedelta(seconds=claim.expires - now.timestamp())
        key_id = claim.key_id or NO_KEY
        return ApiKey(
            id=key_id, owner=claim.owner, scopes=_SIGNED_URL_SCOPES, secret_sha256="", created_at=now, expires_at=ends
        )


def _parse_claim(query: Mapping[str, str]) -> _UrlClaim | None:
    owner, expires = query.get("owner", ""), query.get("expires", "")
    if not is_token(owner) or not (expires.isascii() and expires.isdigit() and len(expires) < 12):
        return None
    key_id = query.get(_KEY_PARAMETER)
    return _UrlClaim(owner, int(expires), key_id) if key_id is None or is_token(key_id) else None


TOKEN_TTL_LIMIT_S = 86_400.0
TOKEN_PREFIX = "lampt_"  # noqa: S105 - the public prefix of a token, not a secret
# Scopes of a token for which none are requested: follow jobs and play results.
DEFAULT_TOKEN_SCOPES = (Scope.JOBS_READ, Scope.ASSETS_READ)

GetKey = Callable[[str], Awaitable[ApiKey | None]]


class IssuedToken(Struct, frozen=True):
    """A new token, its scopes and its expiry."""

    text: str
    scopes: tuple[Scope, ...]
    expires_at: datetime


class _TokenPayload(Struct, frozen=True, array_like=True):
    key: Token
    scopes: tuple[Scope, ...]
    expires: int  # seconds since 1970


class TokenIssuer:
    """Issues and verifies tokens. `get_key`: returns the active key with an id, from a cache of a few seconds."""

    def __init__(self, secret: bytes, get_key: GetKey, clock: Clock) -> None:
        self._hmac = PurposeHmac(secret, "token")
        self._get_key = get_key
        self._clock = clock

    def issue(self, key: ApiKey, scopes: Collection[Scope] | None, ttl_s: float) -> IssuedToken:
        """Issue a token that expires with `key` at the latest. Raises ProblemError `forbidden` for a missing scope."""
        scopes_or_default = (
            tuple(scope for scope in DEFAULT_TOKEN_SCOPES if key.allows(scope)) if scopes is None else tuple(scopes)
        )
        missing = [scope for scope in scopes_or_default if not key.allows(scope)]
        if missing:
            raise ProblemError(
                "forbidden", f"the key lacks the scope {missing[0]}: a token cannot do more than its key"
            )
        expires_at = self._clock() + timedelta(seconds=ttl_s)
        if key.expires_at is not None:
            expires_at = min(expires_at, key.expires_at)
        body = _TokenPayload(key.id, scopes_or_default, int(expires_at.timestamp()))
        text = base64.urlsafe_b64encode(msgspec.json.encode(body)).rstrip(b"=").decode()
        return IssuedToken(
            f"{TOKEN_PREFIX}{text}.{self._hmac.sign(text)}",
            scopes_or_default,
            datetime.fromtimestamp(body.expires, UTC),
        )

    async def verify(self, text: str) -> ApiKey | None:
        """Return the key of a token, with the token's scopes and expiry. Raises BusError.

        None: the token is not valid or has expired, or its key no longer has these scopes.
        """
        payload, _, signature = text.removeprefix(TOKEN_PREFIX).partition(".")
        if not text.startswith(TOKEN_PREFIX) or not self._hmac.verify(signature, payload):
            return None
        try:
            body = msgspec.json.decode(
                base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), type=_TokenPayload
            )
        except msgspec.DecodeError:  # issued by a newer version
            return None
        expires_at = datetime.fromtimestamp(body.expires, UTC)
        key = await self._get_key(body.key) if self._clock() < expires_at else None
        if key is None or not all(key.allows(scope) for scope in body.scopes):
            return None
        return structs.replace(key, scopes=body.scopes, expires_at=expires_at)


SESSION_PREFIX = "lamps_"
SESSION_LIFETIME = timedelta(days=14)
TICKET_LIFETIME = timedelta(minutes=15)
_TICKET_BYTES = 16
_USED_TICKETS = "ticket."  # the stored prefix of the rows of used tickets
_SECRET_MARK_LENGTH = 16  # digits of the secret's digest that a session carries


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
