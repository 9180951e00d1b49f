"""What `/easy/…` answers: the vendor's codes and texts, exact, always HTTP 200 (research/heygem.md, section 3)."""

from collections.abc import Mapping
from typing import Any

import msgspec
from litestar import Response
from msgspec import Struct, field, structs

from edge.facades.heygem.mapping import FieldMissing
from edge.http.dependencies import AnyRequest
from edge.http.problems import problem_for_error
from schemas.problems import ProblemError

ERROR_HEADER = "Lamplighter-Error"  # a header: the vendor's texts do not say what was wrong
_ERROR_HEADER_LENGTH_LIMIT = 300


class EasyResponse(Struct, frozen=True):
    """The whole body. `msg` of what was accepted is the integer 10000: a slip of the vendor's that clients rely on."""

    code: int
    msg: str | int = ""
    success: bool = True
    data: dict[str, Any] = field(default_factory=dict)


ACCEPTED = EasyResponse(10000, 10000)
BUSY = EasyResponse(10001, "忙碌中")
UNKNOWN = EasyResponse(10004, "任务不存在")
ALREADY_EXISTS = EasyResponse(10005, "任务已存在", success=False)
INTERNAL_ERROR = EasyResponse(9999, "系统异常", success=False)

# Refusals by code; every other one is FAULT.
RESPONSE_BY_PROBLEM: Mapping[str, EasyResponse] = {
    "not_found": UNKNOWN,
    "conflict": ALREADY_EXISTS,
    "quota_exceeded": BUSY,
    "rate_limited": BUSY,
    "store_full": BUSY,
    "unavailable": BUSY,  # it passes; at FAULT clients give the job up, though it goes on
}


def missing_field(name: str) -> EasyResponse:
    """A field that must be there is not."""
    return EasyResponse(10002, f"{name}参数缺失", success=False)


def query_result(data: dict[str, Any]) -> EasyResponse:
    """What a query found."""
    return EasyResponse(10000, data=data)


def to_http_response(answer: EasyResponse, why: ProblemError | None = None) -> Response[bytes]:
    """The answer as HTTP; `why` goes into a header, for people who look."""
    headers = {} if why is None else {ERROR_HEADER: _header_text(f"{why.code}: {why.detail}")}
    body = msgspec.json.encode(structs.asdict(answer), order="sorted")
    return Response(body, status_code=200, media_type="text/html", headers=headers)


def exception_handler(request: AnyRequest, error: Exception) -> Response[bytes]:
    """The exception handler of the facade: whatever went wrong has a code."""
    del request
    if isinstance(error, FieldMissing):
        return to_http_response(missing_field(error.name))
    refused = problem_for_error(error)
    return to_http_response(RESPONSE_BY_PROBLEM.get(refused.code, INTERNAL_ERROR), refused)


def _header_text(text: str) -> str:
    """What may stand in a header: printable ASCII."""
    spelt = text.replace("…", "...")
    return "".join(c if " " <= c <= "~" else "?" for c in spelt)[:_ERROR_HEADER_LENGTH_LIMIT]
