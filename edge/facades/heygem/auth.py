"""Authenticate callers of `/easy/…`: by key, or without one on the keyless port of this machine."""

from typing import Any, cast
from urllib.parse import quote

import httpx2
from starlette import types as asgi

from edge.core.error_handling import translate_errors
from edge.http.auth import authenticate_throttled, count_request, read_credential
from edge.http.dependencies import AnyRequest, EdgeServices
from edge.http.middleware import send_problem
from edge.http.proxied import is_proxied
from schemas.auth import Scope
from schemas.environment import is_loopback
from schemas.ids import Token
from schemas.problems import ProblemError

_KEYLESS_SCOPE_KEY = "lamplighter.keyless"
EASY_PREFIX = "/easy/"
VENDOR_TTS_PREFIX = "/v1/"  # of the vendor's speech server, on a port of its own
TTS_PREFIX = "/tts/v1/"  # the same on the ports of the edge, where /v1/ is its own API


async def authenticate_owner(request: AnyRequest, services: EdgeServices, scope: Scope, keyless_owner: Token) -> str:
    """Return the owner of the request. A request without a key on the keyless port acts for `keyless_owner`.

    A key in the request must be valid, on the keyless port as well. Raises ProblemError `unauthorized`, `forbidden`,
    and `unavailable` while the broker is unreachable.
    """
    text = read_credential(request) or request.query_params.get("key")
    if not text:
        if is_local_request(request):
            return keyless_owner
        raise ProblemError("unauthorized", "send a key: as 'Authorization: Bearer lamp_…', 'X-API-Key' or '?key='")
    with translate_errors():
        key = await authenticate_throttled(request, services, text)
    if key is None:
        raise ProblemError("unauthorized", "the key is not valid, or was revoked: send another")
    if not key.allows(scope):
        raise ProblemError("forbidden", f"the key lacks the scope {scope}: use a key that has it")
    count_request(request, services, key)
    return key.owner


def is_local_request(request: AnyRequest) -> bool:
    """Return whether the request comes from a program on this machine, and not from a web page of another site.

    The request must arrive on the keyless port, not from a trusted proxy, and without a header of a proxy. `Host` must
    be a loopback name with the port of the socket, so that a foreign name that resolves to 127.0.0.1 (DNS rebinding)
    does not pass. `Origin`, if present, must be a loopback name. A TCP tunnel to the port cannot be detected.
    """
    headers = request.headers
    if not is_from_keyless_port(request.scope) or is_proxied(request.scope):
        return False
    sent_to = _parse_url(f"//{headers.get('host', '')}")
    _, own_port = request.scope.get("server") or ("", None)
    if sent_to is None or not is_loopback(sent_to.host) or sent_to.port != own_port:
        return False
    origin = _parse_url(headers["origin"]) if "origin" in headers else sent_to
    return origin is not None and is_loopback(origin.host)


def _parse_url(text: str) -> httpx2.URL | None:
    try:
        return httpx2.URL(text)
    except httpx2.InvalidURL:
        return None


def is_from_keyless_port(scope: Any) -> bool:
    """Return whether the request arrived on the keyless port."""
    return bool(cast("dict[str, Any]", scope).get(_KEYLESS_SCOPE_KEY))


class KeylessPort:
    """The app on a keyless port: the paths below `prefix` and nothing else. The app itself has them below `mount`."""

    def __init__(self, app: asgi.ASGIApp, prefix: str = EASY_PREFIX, mount: str = EASY_PREFIX) -> None:
        self._app = app
        self._prefix = prefix
        self._mount = mount

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(self._prefix):
            path = self._mount + scope["path"].removeprefix(self._prefix)
            moved = dict(scope) | {"path": path, "raw_path": quote(path).encode(), _KEYLESS_SCOPE_KEY: True}
            await self._app(moved, receive, send)
        elif scope["type"] == "http":
            detail = f"this port serves only {self._prefix}: use the edge's main port, with a key"
            await send_problem(ProblemError("not_found", detail), scope, send)
        else:
            await send({"type": "websocket.close", "code": 1008})
