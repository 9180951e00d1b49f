"""The border: every exception that leaves a route becomes a problem document."""

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler

from edge.services.choices import with_choices
from edge.services.refusals import as_refused
from schemas.errors import FieldError, Refused

log = structlog.get_logger()

# What Litestar itself refuses. A 405 keeps its status and its Allow header; the closed list has no code of its own.
BY_STATUS = {
    400: "input_invalid",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "not_found",
    413: "body_too_large",
    429: "rate_limited",
}
NOT_ALLOWED = 405
# What to do, where Litestar says no more than the status does.
TO_DO = {
    400: "the request does not fit this path: GET /schema/openapi.json tells what each takes",
    404: "there is no such path: GET /schema/openapi.json lists all",
    405: "this path takes other methods: the header Allow names them",
    413: "the body is larger than this path takes: upload large things as assets, send many jobs in several batches",
}
# Parameters whose names in a request are no names for Python.
NAMED = {"since": "from", "until": "to", "idempotency_key": "Idempotency-Key"}
AGAIN_S = 5  # what 429 and 503 say of when to come again, where nobody knows better
LATER = frozenset({429, 503})


def _of_http(error: HTTPException, kinds: Mapping[str, Any]) -> Refused:
    code = BY_STATUS.get(error.status_code, "internal" if error.status_code >= 500 else "body_malformed")
    extra = error.extra if isinstance(error.extra, list) else []
    fields = tuple(FieldError(f"$.{_name(item)}", _told(item, kinds)) for item in extra)
    if fields:
        return Refused(code, f"{fields[0].path}: {fields[0].message}", errors=fields)
    if error.status_code in TO_DO and error.detail == HTTPStatus(error.status_code).phrase:
        return Refused(code, TO_DO[error.status_code])
    return Refused(code, str(error.detail))


def _name(item: dict[str, Any]) -> str:
    key = str(item.get("key", ""))
    return key if item.get("source") == "body" else NAMED.get(key, key)


def _told(item: dict[str, Any], kinds: Mapping[str, Any]) -> str:
    said, kind = str(item.get("message", "")), kinds.get(str(item.get("key")))
    return said if kind is None else with_choices(said, kind)


def refusal_for(error: Exception, kinds: Mapping[str, Any] = MappingProxyType({})) -> Refused:
    """The refusal that `error` means to a client; what nothing names is our own fault.

    `kinds`: the types of the parameters that the request could have, by name.
    """
    if isinstance(error, Refused):
        return error
    known = as_refused(error)
    if known is not None:
        return known
    if isinstance(error, HTTPException):
        return _of_http(error, kinds)
    log.error("request_failed", exc_info=error)
    return Refused("internal", "the server failed at this request; its log says why")


def _headers(refused: Refused, error: Exception) -> dict[str, str]:
    later = refused.retry_after_s or (AGAIN_S if refused.problem.status in LATER else None)
    headers = {"Retry-After": str(later)} if later else {}
    if refused.code == "unauthorized":
        headers["WWW-Authenticate"] = "Bearer"
    foreign = error.headers if isinstance(error, HTTPException) and error.headers else {}
    return headers | {name: value for name, value in foreign.items() if name.lower() == "allow"}


class Explained(NamedTuple):
    """An error as HTTP tells it."""

    status: int
    headers: dict[str, str]
    body: bytes
    media_type: str = "application/problem+json"

    @property
    def title(self) -> str:
        """The phrase of a status line."""
        return HTTPStatus(self.status).phrase


def explain(error: Exception, path: str, kinds: Mapping[str, Any] = MappingProxyType({})) -> Explained:
    """What to answer where `error` came out of a request for `path`; `kinds` as `refusal_for` takes them."""
    refused = refusal_for(error, kinds)
    not_allowed = isinstance(error, HTTPException) and error.status_code == NOT_ALLOWED
    status = NOT_ALLOWED if not_allowed else refused.problem.status
    problem = msgspec.structs.replace(refused.problem, instance=path, status=status)
    return Explained(status, _headers(refused, error), msgspec.json.encode(problem))


def answer(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """The exception handler of the whole app."""
    handler = request.scope.get("route_handler")  # none where no path fits
    given = handler.parsed_fn_signature.parameters if isinstance(handler, HTTPRouteHandler) else {}
    said = explain(error, request.url.path, {name: one.annotation for name, one in given.items()})
    return Response(said.body, status_code=said.status, headers=said.headers, media_type=said.media_type)
