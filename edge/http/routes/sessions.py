"""`/v1/session`: sign a browser in to the console, and out again. The session is an HttpOnly cookie."""

from typing import Literal

from litestar import Response, delete, get, post
from litestar.datastructures import Cookie
from msgspec import Struct

from edge.core.error_handling import translate_errors
from edge.http.auth import (
    NO_AUTH,
    SESSION_COOKIE,
    authenticate_throttled,
    read_credential,
    read_session_cookie,
)
from edge.http.dependencies import AnyRequest, EdgeServices, ServicesDep
from edge.http.openapi import json_body
from edge.http.request_body import read_struct
from edge.owners.sessions import SESSION_LIFETIME
from schemas.auth import ApiKey, Scope, parse_credential
from schemas.job import Moment
from schemas.problems import ProblemError


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


def _to_view(key: ApiKey) -> SessionView:
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
    return Response(_to_view(key), status_code=201, cookies=[cookie])


@get("/v1/session", opt={NO_AUTH: True})
async def read_session(request: AnyRequest, services: ServicesDep) -> Response[SessionView | None]:
    """Return the key behind the request and its scopes; null without a session."""
    text = read_credential(request)
    if text is None:
        return Response(None, status_code=200)
    with translate_errors():
        key = await authenticate_throttled(request, services, text)
    if key is not None:
        return Response(_to_view(key), status_code=200)
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


ROUTES = (start_session, read_session, end_session, create_ticket)
