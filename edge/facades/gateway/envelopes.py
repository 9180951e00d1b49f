"""Envelopes out of what the services say: answers to a message, refusals, and words about a job."""

from datetime import datetime
from typing import Any

from msgspec import structs

from edge.facades.gateway.hall import Hall
from edge.facades.gateway.wire import seconds
from edge.services import messages
from edge.services.messages import DEFAULT_WAKE_S, Language
from schemas.envelope import Envelope, JobPayload, Kind, Message
from schemas.errors import Refused
from schemas.view import JobView
from schemas.words import FINAL, WAITING, Status

HEYGEM_TASK = "heygem_submit"
# Ends that are no success and carry no failure of the job's own.
_ENDS = {Status.CANCELLED: "cancelled", Status.EXPIRED: "expired"}


def answer(hall: Hall, to: Message, kind: Kind, payload: Any = None, **fields: Any) -> Envelope:
    """The answer to a message, with its `request_id` and `trace_id`."""
    said = {"request_id": to.request_id, "trace_id": to.trace_id, "task_type": to.task_type} | fields
    return Envelope(type=kind, ts=seconds(hall.now()), payload={} if payload is None else payload, **said)


def refusal(hall: Hall, refused: Refused, to: Message, language: Language) -> Envelope:
    """`error`: the code and what is wrong in `result.error`, as HTTP's problem document has it."""
    said = messages.refusal(refused, language)
    detail = {
        "code": refused.code,
        "message": said,
        "detail": refused.detail,
        "errors": refused.errors,
        "missing": refused.missing,
        "retry_after_s": refused.retry_after_s,
    }
    return answer(hall, to, Kind.ERROR, error=True, error_msg=said, result={"error": detail})


def wait_seconds(hall: Hall, view: JobView, now: datetime) -> int:
    """How long until it starts, as far as is known: the estimate, or the usual wake of a host that is off; else 0."""
    if view.status not in WAITING:
        return 0
    if view.eta is not None and view.eta.start_at is not None:
        return max(0, round((view.eta.start_at - now).total_seconds()))
    if hall.parts.hosts.online(view.endpoint):
        return 0
    measured = hall.parts.hosts.wake_s(view.endpoint)
    return round(DEFAULT_WAKE_S if measured is None else measured)


def job_payload(hall: Hall, view: JobView, push_id: str = "") -> JobPayload:
    """Where the job stands."""
    now = hall.now()
    return JobPayload(
        id=push_id,
        job_id=view.id,
        status=view.status,
        queue_position=view.queue_position,
        wait_seconds=wait_seconds(hall, view, now),
        waited_seconds=_waited(view, now) if view.status in WAITING else None,
        missing=view.missing,
        message=view.message or "",
    )


def _waited(view: JobView, now: datetime) -> int:
    """Since the submit, or the retry."""
    since = view.queued_at if view.round > 1 and view.queued_at is not None else view.created_at
    return max(0, int((now - since).total_seconds()))


def ended(view: JobView) -> tuple[str, Any]:
    """`error_msg` and `result` of a job that has ended; the first is empty when it succeeded."""
    if view.status is Status.SUCCEEDED:
        return "", view
    said = view.message or ""
    if view.error is not None:
        return said, structs.replace(view, error=structs.replace(view.error, message=said))
    error = {"code": _ENDS.get(view.status, view.status), "message": said, "blame": "client", "retryable": False}
    return said, structs.asdict(view) | {"error": error}


def is_final(view: JobView) -> bool:
    """Whether nothing more will come of this round."""
    return view.status in FINAL


def task_of(hall: Hall, endpoint: str) -> str:
    """The `task_type` of pushes about an endpoint's jobs: HeyGem's has a name of its own on this wire."""
    return HEYGEM_TASK if endpoint == hall.parts.settings.heygem.endpoint else endpoint
