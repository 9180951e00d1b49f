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

from edge.core.error_handling import problem_for_known_error
from edge.core.validation import describe_allowed_values
from schemas.problems import FieldError, ProblemError

log = structlog.get_logger()

# What Litestar itself refuses. A 405 keeps its status and its Allow header; the closed list has no code of its own.
CODES_BY_STATUS = {
    400: "input_invalid",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "not_found",
    413: "body_too_large",
    429: "rate_limited",
}
METHOD_NOT_ALLOWED = 405
# What to do, where Litestar says no more than the status does.
HINTS_BY_STATUS = {
    400: "the request does not fit this path: GET /schema/openapi.json tells what each takes",
    404: "there is no such path: GET /schema/openapi.json lists all",
    405: "this path takes other methods: the header Allow names them",
    413: "the body is larger than this path takes: upload large things as assets, send many jobs in several batches",
}
# Parameters whose names in a request are no names for Python.
PARAMETER_NAMES = {"since": "from", "until": "to", "idempotency_key": "Idempotency-Key"}
DEFAULT_RETRY_AFTER_S = 5  # what 429 and 503 say of when to come again, where nobody knows better
RETRY_LATER_STATUSES = frozenset({429, 503})


def _problem_for_http_exception(error: HTTPException, kinds: Mapping[str, Any]) -> ProblemError:
    code = CODES_BY_STATUS.get(error.status_code, "internal" if error.status_code >= 500 else "body_malformed")
    extra = error.extra if isinstance(error.extra, list) else []
    fields = tuple(FieldError(f"$.{_parameter_name(item)}", _parameter_message(item, kinds)) for item in extra)
    if fields:
        return ProblemError(code, f"{fields[0].path}: {fields[0].message}", errors=fields)
    if error.status_code in HINTS_BY_STATUS and error.detail == HTTPStatus(error.status_code).phrase:
        return ProblemError(code, HINTS_BY_STATUS[error.status_code])
    return ProblemError(code, str(error.detail))


def _parameter_name(item: dict[str, Any]) -> str:
    key = str(item.get("key", ""))
    return key if item.get("source") == "body" else PARAMETER_NAMES.get(key, key)


def _parameter_message(item: dict[str, Any], kinds: Mapping[str, Any]) -> str:
    said, kind = str(item.get("message", "")), kinds.get(str(item.get("key")))
    return said if kind is None else describe_allowed_values(said, kind)


def problem_for_error(error: Exception, kinds: Mapping[str, Any] = MappingProxyType({})) -> ProblemError:
    """The refusal that `error` means to a client; what nothing names is our own fault.

    `kinds`: the types of the parameters that the request could have, by name.
    """
    if isinstance(error, ProblemError):
        return error
    known = problem_for_known_error(error)
    if known is not None:
        return known
    if isinstance(error, HTTPException):
        return _problem_for_http_exception(error, kinds)
    log.error("request_failed", exc_info=error)
    return ProblemError("internal", "the server failed at this request; its log says why")


def _headers(refused: ProblemError, error: Exception) -> dict[str, str]:
    later = refused.retry_after_s or (DEFAULT_RETRY_AFTER_S if refused.problem.status in RETRY_LATER_STATUSES else None)
    headers = {"Retry-After": str(later)} if later else {}
    if refused.code == "unauthorized":
        headers["WWW-Authenticate"] = "Bearer"
    foreign = error.headers if isinstance(error, HTTPException) and error.headers else {}
    return headers | {name: value for name, value in foreign.items() if name.lower() == "allow"}


class ProblemResponse(NamedTuple):
    """An error as HTTP tells it."""

    status: int
    headers: dict[str, str]
    body: bytes
    media_type: str = "application/problem+json"

    @property
    def title(self) -> str:
        """The phrase of a status line."""
        return HTTPStatus(self.status).phrase


def make_problem_response(
    error: Exception, path: str, kinds: Mapping[str, Any] = MappingProxyType({})
) -> ProblemResponse:
    """What to answer where `error` came out of a request for `path`; `kinds` as `refusal_for` takes them."""
    refused = problem_for_error(error, kinds)
    not_allowed = isinstance(error, HTTPException) and error.status_code == METHOD_NOT_ALLOWED
    status = METHOD_NOT_ALLOWED if not_allowed else refused.problem.status
    problem = msgspec.structs.replace(refused.problem, instance=path, status=status)
    return ProblemResponse(status, _headers(refused, error), msgspec.json.encode(problem))


def handle_exception(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """The exception handler of the whole app."""
    handler = request.scope.get("route_handler")  # none where no path fits
    given = handler.parsed_fn_signature.parameters if isinstance(handler, HTTPRouteHandler) else {}
    said = make_problem_response(error, request.url.path, {name: one.annotation for name, one in given.items()})
    return Response(said.body, status_code=said.status, headers=said.headers, media_type=said.media_type)
