"""Who calls: the key of a request, and the owner whose things it may touch."""

from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult
from litestar.types import Guard

from edge.services.keys import Keys
from edge.services.refusals import refusing
from schemas.access import ApiKey, Scope
from schemas.errors import Refused
from schemas.words import is_token

Connection = ASGIConnection[Any, Any, Any, Any]

OPEN = "open"  # the opt of a route that asks for no key


def presented(connection: Connection) -> str | None:
    """The key as sent: `Authorization: Bearer …` or `X-API-Key`."""
    scheme, _, credential = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credential:
        return credential.strip()
    return connection.headers.get("x-api-key")


class Authenticate(AbstractAuthenticationMiddleware):
    """Refuses what carries no valid key; `request.auth` is the ApiKey afterwards."""

    async def authenticate_request(self, connection: Connection) -> AuthenticationResult:
        ring: Keys = connection.app.state.parts.keys
        text = presented(connection)
        with refusing():
            key = await ring.authenticate(text) if text else None
        if key is None:
            raise Refused("unauthorized", "send a valid key as 'Authorization: Bearer lamp_…' or 'X-API-Key'")
        return AuthenticationResult(user=key.owner, auth=key)


def needs(scope: Scope) -> Guard:
    """A guard that lets only keys with `scope` pass. Async, because Litestar runs others in a thread of their own."""

    async def guard(connection: Connection, _: BaseRouteHandler) -> None:
        key: ApiKey = connection.auth
        if not key.allows(scope):
            raise Refused("forbidden", f"the key lacks the scope {scope}: use a key that has it")

    return guard


def owner_of(connection: Connection) -> str:
    """Whose things are meant: the key's owner, or `?owner=` for a key with admin or runner."""
    key: ApiKey = connection.auth
    asked: str | None = connection.query_params.get("owner")
    if asked is None or asked == key.owner:
        return key.owner
    if not key.scopes or not {Scope.ADMIN, Scope.RUNNER} & set(key.scopes):
        raise Refused("forbidden", "?owner= needs a key with the scope admin or runner")
    if not is_token(asked):
        raise Refused("input_invalid", "?owner= must be 1 to 64 of A-Z a-z 0-9 _ -")
    return asked
