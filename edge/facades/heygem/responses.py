"""The responses of `/easy/…`: the vendor's codes and texts, character by character, always with HTTP 200."""

from collections.abc import Mapping
from typing import Any

import msgspec
from litestar import Response
from msgspec import Struct, field, structs

from edge.facades.heygem.mapping import FieldMissing
from edge.http.dependencies import AnyRequest
from edge.http.problems import problem_for_error
from schemas.problems import ProblemError

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
