"""`/v1/keys`, `/v1/tokens`, `/v1/session` and `/v1/audit`: API keys, what is made from them, and the audit log.

From a key a client gets a short-lived token, and a browser an HttpOnly cookie with a session of the console.
"""

from datetime import timedelta
from typing import Annotated, Literal

from litestar import Response, delete, get, post
from litestar.datastructures import Cookie
from litestar.params import FromPath, QueryParameter
from msgspec import Meta, Struct, structs

from edge.core.concurrency import translate_errors
from edge.http.auth import (
    NO_AUTH,
    SESSION_COOKIE,
    authenticate_throttled,
    read_credential,
    read_session_cookie,
    require_scope,
)
from edge.http.dependencies import AnyRequest, EdgeServices, ServicesDep, record_audit_event
from edge.http.openapi import json_body
from edge.http.request_input import read_struct
from edge.index.rows import decode_cursor, encode_cursor
from edge.owners.api_keys import ROTATION_GRACE
from edge.owners.audit_log import AuditFilter
from edge.owners.signed_credentials import SESSION_LIFETIME, TOKEN_TTL_LIMIT_S
from schemas.credentials import CLIENT_SCOPES, ApiKey, Scope, parse_credential
from schemas.installation import AuditAction, AuditEvent
from schemas.job import Moment, Token
from schemas.problems import ProblemError

GRACE_LIMIT_S = 30 * 86_400.0


class KeyRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A key to create. Without `scopes` it gets those of an ordinary client."""

    owner: Token
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)] = CLIENT_SCOPES
    name: Annotated[str, Meta(max_length=100)] = ""
    expires_at: Moment | None = None
    language: Annotated[str, Meta(pattern="^(zh|en)$")] | None = None


class KeyRotation(Struct, frozen=True, forbid_unknown_fields=True):
    """`grace_s`: how long the previous secret remains valid; 0 for a secret that was leaked."""

    grace_s: Annotated[float, Meta(ge=0, le=GRACE_LIMIT_S)] = ROTATION_GRACE.total_seconds()


class KeyView(Struct, frozen=True, kw_only=True):
    """An API key. `key` contains the secret, only in the response that creates or rotates it.

    `used_at`: the last use, with a delay of some minutes. `previous_until`: the previous secret is valid until then.
    """

    id: str
    owner: str
    scopes: tuple[Scope, ...]
    name: str
    created_at: Moment
    expires_at: Moment | None
    language: str | None = None
    used_at: Moment | None = None
    previous_until: Moment | None = None
    key: str | None = None


class KeyListView(Struct, frozen=True):
    """The keys of all owners, without their secrets."""

    keys: list[KeyView]


def _to_key_view(key: ApiKey, text: str | None = None) -> KeyView:
    return KeyView(
        id=key.id,
        owner=key.owner,
        scopes=key.scopes,
        name=key.name,
        created_at=key.created_at,
        expires_at=key.expires_at,
        language=key.language,
        used_at=key.used_at,
        previous_until=key.previous_until,
        key=text,
    )


@post("/v1/keys", status_code=201, guards=[require_scope(Scope.ADMIN)], operation_class=json_body(KeyRequest))
async def create_key(request: AnyRequest, services: ServicesDep) -> KeyView:
    """Create a key. Only this response contains its secret."""
    body = await read_struct(request, KeyRequest)
    services.quotas.check_not_deleting(body.owner)
    with translate_errors():
        key, text = await services.api_keys.create(
            body.owner, body.scopes, name=body.name, expires_at=body.expires_at, language=body.language
        )
    await record_audit_event(request, services, AuditAction.KEY_CREATED, key.id, owner=key.owner, scopes=key.scopes)
    return _to_key_view(key, text)


@get("/v1/keys", guards=[require_scope(Scope.ADMIN)])
async def list_keys(services: ServicesDep) -> KeyListView:
    """List all keys, without their secrets."""
    with translate_errors():
        return KeyListView([_to_key_view(key) for key in await services.api_keys.list()])


@delete("/v1/keys/{key_id:str}", status_code=204, guards=[require_scope(Scope.ADMIN)])
async def revoke_key(request: AnyRequest, services: ServicesDep, key_id: FromPath[str]) -> None:
    """Revoke a key. It stops working at once, on other edges within 5 s."""
    with translate_errors():
        await services.api_keys.revoke(key_id)
    await record_audit_event(request, services, AuditAction.KEY_REVOKED, key_id)


@post(
    "/v1/keys/{key_id:str}/rotate",
    status_code=200,
    guards=[require_scope(Scope.ADMIN)],
    operation_class=json_body(KeyRotation),
)
async def rotate_key(request: AnyRequest, services: ServicesDep, key_id: FromPath[str]) -> KeyView:
    """Replace the secret of a key. Only this response contains the new one; the old one is valid for `grace_s`."""
    body = await read_struct(request, KeyRotation)
    with translate_errors():
        key, text = await services.api_keys.rotate(key_id, timedelta(seconds=body.grace_s))
    await record_audit_event(request, services, AuditAction.KEY_ROTATED, key.id, owner=key.owner, scopes=key.scopes)
    return _to_key_view(key, text)


DEFAULT_TOKEN_TTL_S = 600.0


class TokenRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A token to create. Without `scopes` it may follow jobs and read files, as far as the key may."""

    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)] | None = None
    ttl_s: Annotated[float, Meta(gt=0, le=TOKEN_TTL_LIMIT_S)] = DEFAULT_TOKEN_TTL_S


class TokenView(Struct, frozen=True):
    """A token for `?token=`. It is valid until `expires_at`, or until its key is revoked."""

    token: str
    scopes: tuple[Scope, ...]
    expires_at: Moment


@post("/v1/tokens", status_code=201, operation_class=json_body(TokenRequest))
async def create_token(request: AnyRequest, services: ServicesDep) -> TokenView:
    """Create a short-lived token for `?token=`, for EventSource, WebSockets in browsers, and `<video>`."""
    body = await read_struct(request, TokenRequest)
    token = services.tokens.issue(request.auth, body.scopes, body.ttl_s)
    return TokenView(token.text, token.scopes, token.expires_at)


class AuditEventView(AuditEvent, frozen=True, kw_only=True, omit_defaults=True):
    """An event of the audit log. `id`: its place in the log."""

    id: int


class AuditTrail(Struct, frozen=True):
    """One page of the audit log, newest first. `next_cursor` is null on the last page."""

    events: list[AuditEventView]
    next_cursor: str | None = None


@get("/v1/audit", guards=[require_scope(Scope.ADMIN)])
async def list_audit(
    services: ServicesDep,
    by: Annotated[str | None, QueryParameter(max_length=64)] = None,
    action: Annotated[str | None, QueryParameter(max_length=64)] = None,
    subject: Annotated[str | None, QueryParameter(max_length=64)] = None,
    of_owner: Annotated[
        str | None,
        QueryParameter(name="owner", max_length=64, description="Only what was done to things of this owner"),
    ] = None,
    since: Annotated[Moment | None, QueryParameter(name="from")] = None,
    until: Annotated[Moment | None, QueryParameter(name="to")] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 100,
    cursor: Annotated[str | None, QueryParameter(max_length=200)] = None,
) -> AuditTrail:
    """List who did what to which key, host, owner, job, asset or setting. Events are kept for 400 days.

    A page may have fewer events than `limit`, or none, although `next_cursor` names another one.
    """
    wanted = AuditFilter(by=by, action=action, subject=subject, owner=of_owner, since=since, until=until)
    start = None if cursor is None else decode_cursor(cursor)[0]
    entries, before = await services.audit.read(wanted, limit, start)
    views = [AuditEventView(id=entry.sequence, **structs.asdict(entry.event)) for entry in entries]
    return AuditTrail(views, None if before is None else encode_cursor(before, "audit"))


class SignIn(Struct, frozen=True, forbid_unknown_fields=True):
    """The credential that signs a browser in: an API key, or the ticket of a sign-in link."""

    key: str | None = None
    ticket: str | None = None


class SessionView(Struct, frozen=True, kw_only=True):
    """The key behind the request, and what it may do. `expires_at`: null for a key that does not expire."""

    key_id: str
    name: str
    owner: str
    scopes: tuple[Scope, ...]
    language: str | None
    expires_at: Moment | None


class TicketView(Struct, frozen=True):
    """A ticket. `path`: open it on this edge to sign one browser in; it works once, until `expires_at`."""

    ticket: str
    path: str
    expires_at: Moment


def _to_session_view(key: ApiKey) -> SessionView:
    return SessionView(
        key_id=key.id,
        name=key.name,
        owner=key.owner,
        scopes=tuple(scope for scope in Scope if key.allows(scope)),
        language=key.language,
        expires_at=key.expires_at,
    )


async def _sign_in(request: AnyRequest, services: EdgeServices, body: SignIn) -> ApiKey | None:
    if body.ticket is not None:
        return await services.sessions.redeem_ticket(body.ticket)
    text = (body.key or "").strip()
    return await authenticate_throttled(request, services, text) if parse_credential(text) else None


def _make_cookie(request: AnyRequest, value: str, max_age: int, same_site: Literal["strict"] = "strict") -> Cookie:
    return Cookie(
        key=SESSION_COOKIE,
        value=value,
        max_age=max_age,
        path="/",
        httponly=True,
        samesite=same_site,
        secure=request.url.scheme == "https",
    )


@post("/v1/session", status_code=201, opt={NO_AUTH: True}, operation_class=json_body(SignIn))
async def start_session(request: AnyRequest, services: ServicesDep) -> Response[SessionView]:
    """Sign a browser in with a key or a ticket. The session ends after 14 days, and at once with its key."""
    body = await read_struct(request, SignIn)
    if (body.key is None) == (body.ticket is None):
        raise ProblemError("input_invalid", "send either a key or a ticket")
    with translate_errors():
        key = await _sign_in(request, services, body)
    if key is None:
        raise ProblemError(
            "unauthorized",
            "the key is not valid: paste it as `lamplighter keys create` printed it"
            if body.ticket is None
            else "the link was used already, or is too old: make a new one with `lamplighter console`",
        )
    session = services.sessions.start(key)
    cookie = _make_cookie(request, session.text, int(SESSION_LIFETIME.total_seconds()))
    return Response(_to_session_view(key), status_code=201, cookies=[cookie])


@get("/v1/session", opt={NO_AUTH: True})
async def read_session(request: AnyRequest, services: ServicesDep) -> Response[SessionView | None]:
    """Return the key behind the request and its scopes; null without a session."""
    text = read_credential(request)
    if text is None:
        return Response(None, status_code=200)
    with translate_errors():
        key = await authenticate_throttled(request, services, text)
    if key is not None:
        return Response(_to_session_view(key), status_code=200)
    if text != read_session_cookie(request):
        raise ProblemError("unauthorized", "the key is not valid: send another one")
    return Response(None, status_code=200, cookies=[_make_cookie(request, "", 0)])


@delete("/v1/session", status_code=204, opt={NO_AUTH: True})
async def end_session(request: AnyRequest) -> Response[None]:
    """Sign the browser out: remove the session cookie."""
    cookie = _make_cookie(request, "", 0)
    return Response(None, status_code=204, cookies=[cookie])


@post("/v1/session/tickets", status_code=201)
async def create_ticket(request: AnyRequest, services: ServicesDep) -> TicketView:
    """Create a link that signs one browser in with the rights of this request's key, once, within 15 minutes."""
    path = request.app.state.console_path
    if path is None:
        raise ProblemError("not_set_up", "the console is switched off here: set console.enabled to true")
    ticket = services.sessions.issue_ticket(request.auth)
    return TicketView(ticket.text, f"{path}#ticket={ticket.text}", ticket.expires_at)


ROUTES = (
    create_key,
    rotate_key,
    list_keys,
    revoke_key,
    create_token,
    list_audit,
    start_session,
    read_session,
    end_session,
    create_ticket,
)
