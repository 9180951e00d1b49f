"""Who calls: the key of a request, and the owner whose things it may touch."""

from typing import Any

from anyio import sleep
from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult
from litestar.types import Guard

from edge.core.error_handling import translate_errors
from edge.core.signed_urls import NO_KEY, SIGNATURE_PARAMETER
from edge.http.dependencies import EdgeServices
from edge.owners.tokens import TOKEN_PREFIX
from schemas.auth import ApiKey, Scope, parse_credential
from schemas.ids import is_token
from schemas.installation import AuditAction
from schemas.problems import ProblemError

AnyConnection = ASGIConnection[Any, Any, Any, Any]

NO_AUTH = "open"  # the opt of a route that asks for no key
FOR_JOBS = "for_jobs"  # the opt of a route where a key with the scope runner may name another owner
WS_UNAUTHORIZED_CODE = 4401  # the close code of a WebSocket whose key is none, or none any more
KEY_REVOKED_REASON = (
    "the key is no longer valid: come again with another"  # the reason beside it, where it was valid before
)
_SAFE_METHODS = ("GET", "HEAD")


def read_credential(connection: AnyConnection) -> str | None:
    """The key or token as sent: `Authorization: Bearer …`, `X-API-Key` or `?token=`."""
    scheme, _, credential = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credential:
        return credential.strip()
    if not credential and parse_credential(scheme):
        return scheme  # the key alone, as RunPod's documents show it too
    return connection.headers.get("x-api-key") or connection.query_params.get("token")


async def authenticate(parts: EdgeServices, text: str) -> ApiKey | None:
    """The key that `text` is, or what of it the token `text` may do; None for a stranger's. Raises BusError."""
    return await (parts.tokens.verify(text) if text.startswith(TOKEN_PREFIX) else parts.api_keys.authenticate(text))


async def is_still_valid(parts: EdgeServices, key: ApiKey, text: str) -> bool:
    """Whether what was sent as `text`, and then was `key`, has not been revoked since. Raises BusError.

    For streams and sockets, which outlive their request. A token opens them, and need not outlive them.
    """
    if text.startswith(TOKEN_PREFIX):
        return await parts.api_keys.get(key.id) is not None
    return await authenticate(parts, text) is not None


def read_client_address(connection: AnyConnection, parts: EdgeServices) -> str:
    """The address that the request came from, as a trusted proxy says it or as the connection has it."""
    peer = connection.client.host if connection.client else ""
    return parts.trusted_proxies.client_address(peer, connection.headers.get("x-forwarded-for"))


async def authenticate_throttled(connection: AnyConnection, parts: EdgeServices, text: str) -> ApiKey | None:
    """As `known`. A failure is logged, and an address that fails often waits for its answer. Raises BusError."""
    key = await authenticate(parts, text)
    if key is None:
        client = read_client_address(connection, parts)
        credential = parse_credential(text)
        parts.client_events.log("authentication_failed", client, key_id=credential.id if credential else "")
        if client not in parts.trusted_proxies:
            await sleep(parts.auth_failures.count_failure(client))
    return key


async def record_audit_event(
    request: AnyConnection, parts: EdgeServices, action: AuditAction, subject: str, **of_key: Any
) -> None:
    """Keep in the audit trail what the request's key did to `subject`; `of_key`: owner and scopes of a key."""
    await parts.audit.record(action, subject, by=request.auth.id, client=read_client_address(request, parts), **of_key)


async def _authenticate_signed_url(connection: AnyConnection, parts: EdgeServices) -> ApiKey | None:
    """Whom a signed URL speaks for; None also where the key that it was made for is no more. Raises BusError.

    Asked before the key: the URL works for whoever has it, with another's key too.
    """
    if SIGNATURE_PARAMETER not in connection.query_params or connection.scope.get("method") not in _SAFE_METHODS:
        return None
    bearer = parts.url_signer.key_for_url(connection.scope["path"], connection.query_params)
    if bearer is None or bearer.id == NO_KEY:
        return bearer
    return bearer if await parts.api_keys.get(bearer.id) is not None else None


class AuthenticationMiddleware(AbstractAuthenticationMiddleware):
    """Refuses what carries no valid key, token or signature; `request.auth` is the ApiKey afterwards."""

    async def authenticate_request(self, connection: AnyConnection) -> AuthenticationResult:
        parts: EdgeServices = connection.app.state.parts
        with translate_errors():
            key = await _authenticate_signed_url(connection, parts)
            if key is None and (text := read_credential(connection)):
                key = await authenticate_throttled(connection, parts, text)
        if key is None:
            raise ProblemError("unauthorized", "send a valid key as 'Authorization: Bearer lamp_…' or 'X-API-Key'")
        return AuthenticationResult(user=key.owner, auth=key)


def require_scope(scope: Scope, *, or_runner: bool = False) -> Guard:
    """A guard that lets only keys with `scope` pass; with `or_runner`, keys with the scope runner too.

    Async, because Litestar runs others in a thread of their own.
    """

    async def guard(connection: AnyConnection, _: BaseRouteHandler) -> None:
        key: ApiKey = connection.auth
        if not (key.allows(scope) or (or_runner and Scope.RUNNER in key.scopes)):
            raise ProblemError("forbidden", f"the key lacks the scope {scope}: use a key that has it")

    return guard


def request_owner(connection: AnyConnection) -> str:
    """The owner that a request is about: the key's, or `?owner=`, which needs admin, or runner on a FOR_JOBS route."""
    for_jobs = bool(connection.route_handler.opt.get(FOR_JOBS))
    return resolve_owner(connection.auth, connection.query_params.get("owner"), for_jobs=for_jobs)


def resolve_owner(key: ApiKey, asked: str | None, *, for_jobs: bool = False) -> str:
    """The owner that a call with `key` means when it asks for `asked`. Raises Refused forbidden, input_invalid."""
    if asked is None or asked == key.owner:
        return key.owner
    if not {Scope.ADMIN, *((Scope.RUNNER,) if for_jobs else ())} & set(key.scopes):
        raise ProblemError("forbidden", "?owner= needs a key with the scope admin, or runner for the files of its jobs")
    if not is_token(asked):
        raise ProblemError("input_invalid", "?owner= must be 1 to 64 of A-Z a-z 0-9 _ -")
    return asked
