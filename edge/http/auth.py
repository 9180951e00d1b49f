"""Authentication: find the credential of a request, its key, what the key may do, and the owner that it acts for."""

from anyio import sleep
from litestar.enums import ScopeType
from litestar.handlers.base import BaseRouteHandler
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult
from litestar.types import Guard

from edge.core.concurrency import translate_errors
from edge.http.dependencies import AnyConnection, EdgeServices, read_client_address
from edge.http.middleware import add_response_headers, note_key_id
from edge.owners.quotas import rate_limited
from edge.owners.signed_credentials import NO_KEY, SESSION_PREFIX, SIGNATURE_PARAMETER, TOKEN_PREFIX
from schemas.credentials import ApiKey, Scope, parse_credential
from schemas.job import is_token
from schemas.problems import ProblemError

NO_AUTH = "open"  # opt of a route that needs no key
FOR_JOBS = "for_jobs"  # opt of a route where a key with the scope runner may name another owner
WS_UNAUTHORIZED_CODE = 4401  # close code for a missing, invalid or revoked key
KEY_REVOKED_REASON = "the key is no longer valid: connect again with another key"
SESSION_COOKIE = "lamplighter_session"
CONSOLE_HEADER = "x-lamplighter-console"  # pages of other sites cannot send it: no CORS answer allows it
_SAFE_METHODS = ("GET", "HEAD")


def read_credential(connection: AnyConnection) -> str | None:
    """Return the key, token or session of the request.

    It is in `Authorization: Bearer …`, `X-API-Key` or `?token=`; without these, in the cookie of the console.
    """
    return _read_header_credential(connection) or read_session_cookie(connection)


def _read_header_credential(connection: AnyConnection) -> str | None:
    scheme, _, credential = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credential:
        return credential.strip()
    if not credential and parse_credential(scheme):
        return scheme  # the key without a scheme, as in RunPod's documentation
    return connection.headers.get("x-api-key") or connection.query_params.get("token")


def read_session_cookie(connection: AnyConnection) -> str | None:
    """Return the session in the cookie. WebSockets have none: any site may open one, with the browser's cookies."""
    return connection.cookies.get(SESSION_COOKIE) if connection.scope["type"] == ScopeType.HTTP else None


def _read_safe_credential(connection: AnyConnection) -> str | None:
    """Return the credential as `read_credential` does.

    Raises ProblemError `forbidden` for a change that a page of another site asked for with the browser's cookie.
    """
    if credential := _read_header_credential(connection):
        return credential
    session = read_session_cookie(connection)
    if session and connection.scope.get("method") not in _SAFE_METHODS and CONSOLE_HEADER not in connection.headers:
        raise ProblemError(
            "forbidden", "a change with the console's cookie needs the header X-Lamplighter-Console: send it, or a key"
        )
    return session


async def authenticate(services: EdgeServices, text: str) -> ApiKey | None:
    """Return the key for `text`: a key, or a token or session, whose scopes the result has. Raises BusError.

    None if `text` is not valid.
    """
    if text.startswith(TOKEN_PREFIX):
        return await services.tokens.verify(text)
    if text.startswith(SESSION_PREFIX):
        return await services.sessions.verify(text)
    return await services.api_keys.authenticate(text)


async def is_still_valid(services: EdgeServices, key: ApiKey, text: str) -> bool:
    """Return whether `key`, which was sent as `text`, is still valid. Raises BusError.

    Event streams and sockets call this again and again. A stream may outlive its token, but not the token's key.
    """
    if text.startswith(TOKEN_PREFIX):
        return await services.api_keys.get(key.id) is not None
    return await authenticate(services, text) is not None


async def authenticate_throttled(connection: AnyConnection, services: EdgeServices, text: str) -> ApiKey | None:
    """Authenticate as `authenticate` does, log failures, and delay addresses that fail often. Raises BusError."""
    key = await authenticate(services, text)
    if key is None:
        client = read_client_address(connection)
        credential = parse_credential(text)
        services.client_events.log("authentication_failed", client, key_id=credential.id if credential else "")
        if not services.trusted_proxies.is_shared(client):
            await sleep(services.auth_failures.count_failure(client))
    else:
        note_key_id(connection.scope, key.id)
    return key


def count_request(connection: AnyConnection, services: EdgeServices, key: ApiKey) -> None:
    """Count a request of `key` for its rate, and tell the client what is left. Raises ProblemError `rate_limited`."""
    state = None if key.id == NO_KEY else services.request_limits.count(key)
    if state is None:
        return
    figures = {"limit": state.limit, "remaining": state.remaining, "reset": state.reset_s}
    add_response_headers(connection.scope, [(f"ratelimit-{name}", str(value)) for name, value in figures.items()])
    if state.retry_after_s:
        services.client_events.log("request_refused", read_client_address(connection), code="rate_limited")
        raise rate_limited(key, state)


async def _authenticate_signed_url(connection: AnyConnection, services: EdgeServices) -> ApiKey | None:
    """Return the key that a signed URL stands for; None without a valid signature or if that key was revoked.

    Checked before a key in the headers: a signed URL also works with the key of another owner. Raises BusError.
    """
    if connection.scope.get("method") not in _SAFE_METHODS or SIGNATURE_PARAMETER not in connection.query_params:
        return None
    key = services.url_signer.key_for_url(connection.scope["path"], connection.query_params)
    if key is None or key.id == NO_KEY:
        return key
    return key if await services.api_keys.get(key.id) is not None else None


class AuthenticationMiddleware(AbstractAuthenticationMiddleware):
    """Rejects requests without a valid key, token or signature, and sets `request.auth` to the ApiKey."""

    async def authenticate_request(self, connection: AnyConnection) -> AuthenticationResult:
        services: EdgeServices = connection.app.state.services
        with translate_errors():
            key = await _authenticate_signed_url(connection, services)
            if key is None and (text := _read_safe_credential(connection)):
                key = await authenticate_throttled(connection, services, text)
        if key is None:
            raise ProblemError("unauthorized", "send a valid key as 'Authorization: Bearer lamp_…' or 'X-API-Key'")
        count_request(connection, services, key)
        return AuthenticationResult(user=key.owner, auth=key)


def require_scope(scope: Scope, *, or_runner: bool = False) -> Guard:
    """Return a guard that requires `scope`. With `or_runner`, the scope runner passes as well.

    The guard is async, because Litestar runs other guards in a thread.
    """

    async def guard(connection: AnyConnection, _: BaseRouteHandler) -> None:
        key: ApiKey = connection.auth
        if not (key.allows(scope) or (or_runner and Scope.RUNNER in key.scopes)):
            raise ProblemError("forbidden", f"the key lacks the scope {scope}: use a key that has it")

    return guard


def request_owner(connection: AnyConnection) -> str:
    """Return the owner of a request: the key's, or `?owner=`, which needs admin, or runner on a FOR_JOBS route."""
    for_jobs = bool(connection.route_handler.opt.get(FOR_JOBS))
    return resolve_owner(connection.auth, connection.query_params.get("owner"), for_jobs=for_jobs)


def resolve_owner(key: ApiKey, requested: str | None, *, for_jobs: bool = False) -> str:
    """Return the owner for a request with `key` that names `requested`. Raises ProblemError."""
    if requested is None or requested == key.owner:
        return key.owner
    if not {Scope.ADMIN, *((Scope.RUNNER,) if for_jobs else ())} & set(key.scopes):
        raise ProblemError("forbidden", "?owner= needs a key with the scope admin, or runner for the files of its jobs")
    if not is_token(requested):
        raise ProblemError("input_invalid", "?owner= must have 1 to 64 characters of A-Z a-z 0-9 _ -")
    return requested
