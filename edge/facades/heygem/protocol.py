"""The authentication of `/easy/…`, and the vendor's responses.

A caller has a key, or comes to the keyless port of this machine. Responses have the vendor's codes and texts,
character by character, always with HTTP 200.
"""

from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import quote

import httpx2
import msgspec
from litestar import Response
from msgspec import Struct, field, structs
from starlette import types as asgi

from edge.core.concurrency import translate_errors
from edge.facades.heygem.mapping import FieldMissing
from edge.http.auth import authenticate_throttled, count_request, read_credential
from edge.http.dependencies import AnyRequest, EdgeServices
from edge.http.middleware import is_proxied, send_problem
from edge.http.problems import problem_for_error
from schemas.credentials import Scope
from schemas.job import Token
from schemas.outbound_rules import is_loopback
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


ERROR_HEADER = "Lamplighter-Error"  # the vendor's texts do not say what was wrong
_ERROR_HEADER_LENGTH_LIMIT = 300


class EasyResponse(Struct, frozen=True):
    """A response body. On success `msg` is the integer 10000: a mistake of the vendor's that clients rely on."""

    code: int
    msg: str | int = ""
    success: bool = True
    data: dict[str, Any] = field(default_factory=dict)


ACCEPTED = EasyResponse(10000, 10000)
BUSY = EasyResponse(10001, "忙碌中")
UNKNOWN = EasyResponse(10004, "任务不存在")
ALREADY_EXISTS = EasyResponse(10005, "任务已存在", success=False)
INTERNAL_ERROR = EasyResponse(9999, "系统异常", success=False)

# Responses to problems; every other problem is INTERNAL_ERROR.
RESPONSE_BY_PROBLEM: Mapping[str, EasyResponse] = {
    "not_found": UNKNOWN,
    "conflict": ALREADY_EXISTS,
    "quota_exceeded": BUSY,
    "rate_limited": BUSY,
    "store_full": BUSY,
    "unavailable": BUSY,  # at INTERNAL_ERROR clients give the job up, although it continues
}


def missing_field(name: str) -> EasyResponse:
    """Return the response to a request without a required field."""
    return EasyResponse(10002, f"{name}参数缺失", success=False)


def query_result(data: dict[str, Any]) -> EasyResponse:
    """Return the response to a query that found a job."""
    return EasyResponse(10000, data=data)


def upload_result(reference: str, name: str) -> EasyResponse:
    """Return the response to an upload: `filename` is what a submit names as its audio_url or video_url."""
    return EasyResponse(10000, data={"filename": reference, "name": name})


def to_http_response(response: EasyResponse, problem: ProblemError | None = None) -> Response[bytes]:
    """Return the HTTP response. `problem` goes into a header, for a person who debugs a client."""
    headers = {} if problem is None else problem_header(problem)
    body = msgspec.json.encode(structs.asdict(response), order="sorted")
    return Response(body, status_code=200, media_type="text/html", headers=headers)


def exception_handler(request: AnyRequest, error: Exception) -> Response[bytes]:
    """Return the vendor's response for an exception. The exception handler of the facade."""
    del request
    if isinstance(error, FieldMissing):
        return to_http_response(missing_field(error.name))
    problem = problem_for_error(error)
    return to_http_response(RESPONSE_BY_PROBLEM.get(problem.code, INTERNAL_ERROR), problem)


def problem_header(problem: ProblemError) -> dict[str, str]:
    """Return the header that says in English what was wrong."""
    return {ERROR_HEADER: _header_text(f"{problem.code}: {problem.detail}")}


def _header_text(text: str) -> str:
    """Return `text` in printable ASCII, as a header requires."""
    ascii_dots = text.replace("…", "...")
    return "".join(c if " " <= c <= "~" else "?" for c in ascii_dots)[:_ERROR_HEADER_LENGTH_LIMIT]
