"""Who calls: the key of a request, and the owner whose things it may touch."""

from typing import Any

from anyio import sleep
from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult
from litestar.types import Guard

from edge.parts import Parts
from edge.services.refusals import refusing
from edge.services.signing import NO_KEY, SIGNATURE
from edge.services.tokens import MARK
from schemas.access import ApiKey, Scope, parse_key
from schemas.audit import Action
from schemas.errors import Refused
from schemas.words import is_token

Connection = ASGIConnection[Any, Any, Any, Any]

OPEN = "open"  # the opt of a route that asks for no key
FOR_JOBS = "for_jobs"  # the opt of a route where a key with the scope runner may name another owner
UNWELCOME = 4401  # the close code of a WebSocket whose key is none, or none any more
REVOKED = "the key is no longer valid: come again with another"  # the reason beside it, where it was valid before
_READING = ("GET", "HEAD")


def presented(connection: Connection) -> str | None:
    """The key or token as sent: `Authorization: Bearer …`, `X-API-Key` or `?token=`."""
    scheme, _, credential = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credential:
        return credential.strip()
    if not credential and parse_key(scheme):
        return scheme  # the key alone, as RunPod's documents show it too
    return connection.headers.get("x-api-key") or connection.query_params.get("token")


async def known(parts: Parts, text: str) -> ApiKey | None:
    """The key that `text` is, or what of it the token `text` may do; None for a stranger's. Raises BusError."""
    return await (parts.tokens.read(text) if text.startswith(MARK) else parts.keys.authenticate(text))


async def still_known(parts: Parts, key: ApiKey, text: str) -> bool:
    """Whether what was sent as `text`, and then was `key`, has not been revoked since. Raises BusError.

    For streams and sockets, which outlive their request. A token opens them, and need not outlive them.
    """
    if text.startswith(MARK):
        return await parts.keys.by_id(key.id) is not None
    return await known(parts, text) is not None


def client_address(connection: Connection, parts: Parts) -> str:
    """The address that the request came from, as a trusted proxy says it or as the connection has it."""
    peer = connection.client.host if connection.client else ""
    return parts.proxies.client(peer, connection.headers.get("x-forwarded-for"))


async def recognised(connection: Connection, parts: Parts, text: str) -> ApiKey | None:
    """As `known`. A failure is logged, and an address that fails often waits for its answer. Raises BusError."""
    key = await known(parts, text)
    if key is None:
        client = client_address(connection, parts)
        credential = parse_key(text)
        parts.strangers.note("authentication_failed", client, key_id=credential.id if credential else "")
        if client not in parts.proxies:
            await sleep(parts.failures.pause(client))
    return key


async def audited(request: Connection, parts: Parts, action: Action, subject: str, **of_key: Any) -> None:
    """Keep in the audit trail what the request's key did to `subject`; `of_key`: owner and scopes of a key."""
    await parts.audit.note(action, subject, by=request.auth.id, client=client_address(request, parts), **of_key)


async def _signed(connection: Connection, parts: Parts) -> ApiKey | None:
    """Whom a signed URL speaks for; None also where the key that it was made for is no more. Raises BusError.

    Asked before the key: the URL works for whoever has it, with another's key too.
    """
    if SIGNATURE not in connection.query_params or connection.scope.get("method") not in _READING:
        return None
    bearer = parts.signer.bearer(connection.scope["path"], connection.query_params)
    if bearer is None or bearer.id == NO_KEY:
        return bearer
    return bearer if await parts.keys.by_id(bearer.id) is not None else None


class Authenticate(AbstractAuthenticationMiddleware):
    """Refuses what carries no valid key, token or signature; `request.auth` is the ApiKey afterwards."""

    async def authenticate_request(self, connection: Connection) -> AuthenticationResult:
        parts: Parts = connection.app.state.parts
        with refusing():
            key = await _signed(connection, parts)
            if key is None and (text := presented(connection)):
                key = await recognised(connection, parts, text)
        if key is None:
            raise Refused("unauthorized", "send a valid key as 'Authorization: Bearer lamp_…' or 'X-API-Key'")
        return AuthenticationResult(user=key.owner, auth=key)


def needs(scope: Scope, *, or_runner: bool = False) -> Guard:
    """A guard that lets only keys with `scope` pass; with `or_runner`, keys with the scope runner too.

    Async, because Litestar runs others in a thread of their own.
    """

    async def guard(connection: Connection, _: BaseRouteHandler) -> None:
        key: ApiKey = connection.auth
        if not (key.allows(scope) or (or_runner and Scope.RUNNER in key.scopes)):
            raise Refused("forbidden", f"the key lacks the scope {scope}: use a key that has it")

    return guard


def owner_of(connection: Connection) -> str:
    """The owner that a request is about: the key's, or `?owner=`, which needs admin, or runner on a FOR_JOBS route."""
    for_jobs = bool(connection.route_handler.opt.get(FOR_JOBS))
    return owner_for(connection.auth, connection.query_params.get("owner"), for_jobs=for_jobs)


def owner_for(key: ApiKey, asked: str | None, *, for_jobs: bool = False) -> str:
    """The owner that a call with `key` means when it asks for `asked`. Raises Refused forbidden, input_invalid."""
    if asked is None or asked == key.owner:
        return key.owner
    if not {Scope.ADMIN, *((Scope.RUNNER,) if for_jobs else ())} & set(key.scopes):
        raise Refused("forbidden", "?owner= needs a key with the scope admin, or runner for the files of its jobs")
    if not is_token(asked):
        raise Refused("input_invalid", "?owner= must be 1 to 64 of A-Z a-z 0-9 _ -")
    return asked
