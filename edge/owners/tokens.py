"""Short-lived tokens for clients that cannot send a header: EventSource, a browser's WebSocket, `<video src>`.

A token holds its key's id, its scopes and its expiry, signed with the installation's secret. Nothing is stored, so any
edge can verify it. The key is read at each use, so that revoking the key also revokes its tokens.
"""

import base64
from collections.abc import Awaitable, Callable, Collection
from datetime import UTC, datetime, timedelta

import msgspec
from msgspec import Struct, structs

from edge.core.clock import Clock
from edge.core.signed_urls import PurposeHmac
from schemas.auth import ApiKey, Scope
from schemas.ids import Token
from schemas.problems import ProblemError

TTL_LIMIT_S = 86_400.0
TOKEN_PREFIX = "lampt_"  # noqa: S105 - the public prefix of a token, not a secret
# Scopes of a token for which none are requested: follow jobs and play results.
DEFAULT_SCOPES = (Scope.JOBS_READ, Scope.ASSETS_READ)

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
            tuple(scope for scope in DEFAULT_SCOPES if key.allows(scope)) if scopes is None else tuple(scopes)
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
