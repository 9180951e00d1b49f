"""Turn every exception that leaves a route into a problem document (RFC 9457)."""

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler

from edge.core.concurrency import problem_for_known_error
from edge.core.messages import choose_language, localize_problem
from edge.core.validation import describe_allowed_values
from schemas.problems import FieldError, ProblemError
from schemas.texts import Language

log = structlog.get_logger()

# Codes for errors that Litestar raises. A 405 keeps its status and its Allow header, but has no code of its own.
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
# Details for errors where Litestar gives only the phrase of the status.
HINTS_BY_STATUS = {
    400: "the request does not match this path: see GET /openapi.json for its parameters",
    404: "this path does not exist: see GET /openapi.json for all paths",
    405: "this path does not support the method: the header Allow lists those that it does",
    413: "the body exceeds the limit of this path: upload large files as assets, and split large batches",
}
# Parameters whose names in a request are not valid or not wanted in Python.
PARAMETER_NAMES = {"since": "from", "until": "to", "idempotency_key": "Idempotency-Key"}
DEFAULT_RETRY_AFTER_S = 5  # Retry-After of a 429 or 503 that has no value of its own
PROBLEM_CODE_KEY = "lamplighter.problem"  # of the ASGI scope of a refused request, for `edge.http.middleware`
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
    text, kind = str(item.get("message", "")), kinds.get(str(item.get("key")))
    return text if kind is None else describe_allowed_values(text, kind)


def problem_for_error(error: Exception, kinds: Mapping[str, Any] = MappingProxyType({})) -> ProblemError:
    """Return the problem for `error`. An unknown error is logged and becomes the problem `internal`.

    `kinds`: the types of the route's parameters, by name.
    """
    if isinstance(error, ProblemError):
        return error
    known = problem_for_known_error(error)
    if known is not None:
        return known
    if isinstance(error, HTTPException):
        return _problem_for_http_exception(error, kinds)
    log.error("request_failed", exc_info=error)
    return ProblemError("internal", "the server failed to handle this request: its log has the cause")


def _headers(problem: ProblemError, error: Exception, language: Language) -> dict[str, str]:
    retry_later = problem.problem.status in RETRY_LATER_STATUSES
    retry_after_s = problem.retry_after_s or (DEFAULT_RETRY_AFTER_S if retry_later else None)
    headers = {"Content-Language": language.value, **({"Retry-After": str(retry_after_s)} if retry_after_s else {})}
    if problem.code == "unauthorized":
        headers["WWW-Authenticate"] = "Bearer"
    litestar_headers = error.headers if isinstance(error, HTTPException) and error.headers else {}
    return headers | {name: value for name, value in litestar_headers.items() if name.lower() == "allow"}


class ProblemResponse(NamedTuple):
    """The HTTP response for an error."""

    status: int
    headers: dict[str, str]
    body: bytes
    code: str
    media_type: str = "application/problem+json"

    @property
    def title(self) -> str:
        """Return the reason phrase of the status line."""
        return HTTPStatus(self.status).phrase


def make_problem_response(
    error: Exception,
    path: str,
    kinds: Mapping[str, Any] = MappingProxyType({}),
    language: Language = Language.EN,
) -> ProblemResponse:
    """Return the response for `error` from a request for `path`. `kinds`: as in `problem_for_error`."""
    raised = problem_for_error(error, kinds)
    not_allowed = isinstance(error, HTTPException) and error.status_code == METHOD_NOT_ALLOWED
    status = METHOD_NOT_ALLOWED if not_allowed else raised.problem.status
    problem = msgspec.structs.replace(localize_problem(raised.problem, language), instance=path, status=status)
    return ProblemResponse(status, _headers(raised, error, language), msgspec.json.encode(problem), raised.code)


def note_problem(scope: Any, code: str) -> None:
    """Note in the ASGI scope with which code a request is refused, for `edge.http.middleware`."""
    scope[PROBLEM_CODE_KEY] = code


def find_language(scope: Mapping[str, Any]) -> Language:
    """Return the language of an ASGI request: by `Accept-Language`, else the key's, else English.

    Also for a request that failed before its key was known.
    """
    accept = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"accept-language"), None)
    return choose_language(accept, getattr(scope.get("auth"), "language", None))


def handle_exception(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Return the response for an exception. The exception handler of the app."""
    handler = request.scope.get("route_handler")  # absent if no path matched
    parameters = handler.parsed_fn_signature.parameters if isinstance(handler, HTTPRouteHandler) else {}
    kinds = {name: parameter.annotation for name, parameter in parameters.items()}
    response = make_problem_response(error, request.url.path, kinds, find_language(request.scope))
    note_problem(request.scope, response.code)
    return Response(
        response.body, status_code=response.status, headers=response.headers, media_type=response.media_type
    )
