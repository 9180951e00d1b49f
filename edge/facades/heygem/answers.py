"""What `/easy/…` answers: the vendor's codes and texts, exact, always HTTP 200 (research/heygem.md, section 3)."""

from collections.abc import Mapping
from typing import Any

import msgspec
from litestar import Response
from msgspec import Struct, field, structs

from edge.facades.heygem.translation import FieldMissing
from edge.problems import refusal_for
from edge.routes.given import AnyRequest
from schemas.errors import Refused

WHY = "Lamplighter-Error"  # a header: the vendor's texts do not say what was wrong
_WHY_CHARACTERS = 300


class Answer(Struct, frozen=True):
    """The whole body. `msg` of what was accepted is the integer 10000: a slip of the vendor's that clients rely on."""

    code: int
    msg: str | int = ""
    success: bool = True
    data: dict[str, Any] = field(default_factory=dict)


ACCEPTED = Answer(10000, 10000)
BUSY = Answer(10001, "忙碌中")
UNKNOWN = Answer(10004, "任务不存在")
TAKEN = Answer(10005, "任务已存在", success=False)
FAULT = Answer(9999, "系统异常", success=False)

# Refusals by code; every other one is FAULT.
BY_CODE: Mapping[str, Answer] = {
    "not_found": UNKNOWN,
    "conflict": TAKEN,
    "quota_exceeded": BUSY,
    "rate_limited": BUSY,
    "store_full": BUSY,
    "unavailable": BUSY,  # it passes; at FAULT clients give the job up, though it goes on
}


def lacking(name: str) -> Answer:
    """A field that must be there is not."""
    return Answer(10002, f"{name}参数缺失", success=False)


def found(data: dict[str, Any]) -> Answer:
    """What a query found."""
    return Answer(10000, data=data)


def send(answer: Answer, why: Refused | None = None) -> Response[bytes]:
    """The answer as HTTP; `why` goes into a header, for people who look."""
    headers = {} if why is None else {WHY: _one_line(f"{why.code}: {why.detail}")}
    body = msgspec.json.encode(structs.asdict(answer), order="sorted")
    return Response(body, status_code=200, media_type="text/html", headers=headers)


def explained(request: AnyRequest, error: Exception) -> Response[bytes]:
    """The exception handler of the facade: whatever went wrong has a code."""
    del request
    if isinstance(error, FieldMissing):
        return send(lacking(error.name))
    refused = refusal_for(error)
    return send(BY_CODE.get(refused.code, FAULT), refused)


def _one_line(text: str) -> str:
    """What may stand in a header: printable ASCII."""
    spelt = text.replace("…", "...")
    return "".join(c if " " <= c <= "~" else "?" for c in spelt)[:_WHY_CHARACTERS]
