"""Short-lived tokens for what cannot send a header: EventSource, a browser's WebSocket, `<video src>`.

A token holds its key's id, scopes and end, sealed with the installation's secret. Nothing is stored, so any edge reads
one; the key is looked up at each use, so that a revoked key's tokens die with it.
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
TOKEN_PREFIX = "lampt_"  # noqa: S105 - the public mark of a token, no secret
# What a token may do where nothing is said: watch, and play.
DEFAULT_SCOPES = (Scope.JOBS_READ, Scope.ASSETS_READ)

GetKey = Callable[[str], Awaitable[ApiKey | None]]


class IssuedToken(Struct, frozen=True):
    """A token and its end."""

    text: str
    scopes: tuple[Scope, ...]
    expires_at: datetime


class _TokenPayload(Struct, frozen=True, array_like=True):
    key: Token
    scopes: tuple[Scope, ...]
    expires: int  # seconds since 1970


class TokenIssuer:
    """Makes and reads tokens. `key_by_id`: the living key of an id, as of at most a few seconds ago."""

    def __init__(self, secret: bytes, key_by_id: GetKey, clock: Clock) -> None:
        self._hmac = PurposeHmac(secret, "token")
        self._get_key = key_by_id
        self._clock = clock

    def issue(self, key: ApiKey, scopes: Collection[Scope] | None, ttl_s: float) -> IssuedToken:
        """A token of `key`, which it never outlives. Raises Refused `forbidden` for a scope that the key lacks."""
        wanted = tuple(scope for scope in DEFAULT_SCOPES if key.allows(scope)) if scopes is None else tuple(scopes)
        lacking = [scope for scope in wanted if not key.allows(scope)]
        if lacking:
            raise ProblemError(
                "forbidden", f"the key lacks the scope {lacking[0]}: a token cannot do more than its key"
            )
        ends = self._clock() + timedelta(seconds=ttl_s)
        if key.expires_at is not None:
            ends = min(ends, key.expires_at)
        body = _TokenPayload(key.id, wanted, int(ends.timestamp()))
        text = base64.urlsafe_b64encode(msgspec.json.encode(body)).rstrip(b"=").decode()
        return IssuedToken(
            f"{TOKEN_PREFIX}{text}.{self._hmac.sign(text)}", wanted, datetime.fromtimestamp(body.expires, UTC)
        )

    async def verify(self, text: str) -> ApiKey | None:
        """The token as a key that may do less and ends sooner; None when it is none of ours, has ended, or its key may
        no longer do what it says. Raises BusError."""
        sealed, _, signature = text.removeprefix(TOKEN_PREFIX).partition(".")
        if not text.startswith(TOKEN_PREFIX) or not self._hmac.verify(signature, sealed):
            return None
        try:
            body = msgspec.json.decode(base64.urlsafe_b64decode(sealed + "=" * (-len(sealed) % 4)), type=_TokenPayload)
        except msgspec.DecodeError:  # of an edge with a newer version
            return None
        ends = datetime.fromtimestamp(body.expires, UTC)
        key = await self._get_key(body.key) if self._clock() < ends else None
        if key is None or not all(key.allows(scope) for scope in body.scopes):
            return None
        return structs.replace(key, scopes=body.scopes, expires_at=ends)
