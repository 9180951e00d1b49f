"""Who calls `/easy/…`: whoever has a key, and by a port of its own this machine's programs without one."""

from typing import Any, cast

import httpx
from starlette import types as asgi

from edge.core.error_handling import translate_errors
from edge.http.auth import authenticate_throttled, read_credential
from edge.http.dependencies import AnyRequest, EdgeServices
from edge.http.problems import make_problem_response
from schemas.auth import Scope
from schemas.environment import is_loopback
from schemas.problems import ProblemError

# A request that carries one of these came through a proxy, so that from loopback says nothing of who sent it.
_PROXY_HEADERS = ("forwarded", "x-forwarded-", "x-real-ip", "via", "true-client-ip", "cf-")


async def authenticate_owner(request: AnyRequest, parts: EdgeServices, scope: Scope) -> str:
    """The owner that the request speaks for. Raises Refused `unauthorized`, `forbidden`, and while the broker is away.

    A key that was sent must be a valid one, on loopback too.
    """
    text = read_credential(request) or request.query_params.get("key")
    if not text:
        if is_local_request(request):
            return parts.settings.heygem.owner
        raise ProblemError("unauthorized", "send a key: as 'Authorization: Bearer lamp_…', 'X-API-Key' or '?key='")
    with translate_errors():
        key = await authenticate_throttled(request, parts, text)
    if key is None:
        raise ProblemError("unauthorized", "the key is not (or no longer) valid: send another")
    if not key.allows(scope):
        raise ProblemError("forbidden", f"the key lacks the scope {scope}: use a key that has it")
    return key.owner


def is_local_request(request: AnyRequest) -> bool:
    """Whether the request can only come from a program on this machine, and none that a web page in a browser made.

    It came in by the port that asks for no key, no proxy or tunnel shows in it, and both the place it was sent to and
    the page it came from, if any, are this machine: a name of somebody else's that leads to 127.0.0.1 is not, nor is
    another port than the one that was opened. A TCP tunnel to the very port cannot be told from a program here.
    """
    headers = request.headers
    if not is_from_keyless_port(request.scope) or any(name.lower().startswith(_PROXY_HEADERS) for name in headers):
        return False
    sent_to = _parse_url(f"//{headers.get('host', '')}")
    _, own_port = request.scope.get("server") or ("", None)
    if sent_to is None or not is_loopback(sent_to.host) or sent_to.port != own_port:
        return False
    page = _parse_url(headers["origin"]) if "origin" in headers else sent_to
    return page is not None and is_loopback(page.host)


def _parse_url(place: str) -> httpx.URL | None:
    try:
        return httpx.URL(place)
    except httpx.InvalidURL:
        return None


# MERGED edge/facades/heygem/keyless.py: A port of this machine on which `/easy/…` asks for no key. It has nothing
# else, and is closed unless asked for.


_KEYLESS_SCOPE_KEY = "lamplighter.keyless"
_EASY_PREFIX = "/easy/"


def is_from_keyless_port(scope: Any) -> bool:
    """Whether the request came in by the port that asks for no key."""
    return bool(cast("dict[str, Any]", scope).get(_KEYLESS_SCOPE_KEY))


class KeylessPort:
    """The edge's app as the clients of that port see it."""

    def __init__(self, app: asgi.ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(_EASY_PREFIX):
            scope[_KEYLESS_SCOPE_KEY] = True
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await _send_not_found(scope["path"], send)
        else:
            await send({"type": "websocket.close", "code": 1008})


async def _send_not_found(path: str, send: asgi.Send) -> None:
    said = make_problem_response(
        ProblemError("not_found", f"this port has {_EASY_PREFIX} alone: use the edge's own port, with a key"), path
    )
    headers = [(b"content-type", said.media_type.encode()), (b"content-length", str(len(said.body)).encode())]
    await send({"type": "http.response.start", "status": said.status, "headers": headers})
    await send({"type": "http.response.body", "body": said.body})
