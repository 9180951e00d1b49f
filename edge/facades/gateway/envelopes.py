"""Envelopes out of what the services say: answers to a message, refusals, and words about a job."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from msgspec import structs

from edge.core import messages
from edge.core.messages import DEFAULT_WAKE_S, Language
from edge.facades.gateway.context import CommandContext, SubmitMetadata
from edge.hosts.registry import HostNotice
from edge.jobs.event_stream import ProgressEvent, StreamItem
from schemas.gateway_protocol import (
    ClientMessage,
    Envelope,
    EnvelopeType,
    JobPayload,
    PowerPayload,
    ProgressPayload,
    encode_envelope,
    unix_seconds,
)
from schemas.ids import JobKey
from schemas.job_view import JobView
from schemas.problems import ProblemError
from schemas.status import FINAL_STATUSES, WAITING_STATUSES, Status

HEYGEM_TASK = "heygem_submit"
# Ends that are no success and carry no failure of the job's own.
_END_CODES = {Status.CANCELLED: "cancelled", Status.EXPIRED: "expired"}


def reply(hall: CommandContext, to: ClientMessage, kind: EnvelopeType, payload: Any = None, **fields: Any) -> Envelope:
    """The answer to a message, with its `request_id` and `trace_id`."""
    said = {"request_id": to.request_id, "trace_id": to.trace_id, "task_type": to.task_type} | fields
    return Envelope(type=kind, ts=unix_seconds(hall.now()), payload={} if payload is None else payload, **said)


def error_reply(hall: CommandContext, refused: ProblemError, to: ClientMessage, language: Language) -> Envelope:
    """`error`: the code and what is wrong in `result.error`, as HTTP's problem document has it."""
    said = messages.format_problem(refused, language)
    detail = {
        "code": refused.code,
        "message": said,
        "detail": refused.detail,
        "errors": refused.errors,
        "missing": refused.missing,
        "retry_after_s": refused.retry_after_s,
    }
    return reply(hall, to, EnvelopeType.ERROR, error=True, error_msg=said, result={"error": detail})


def estimate_wait_s(hall: CommandContext, view: JobView, now: datetime) -> int:
    """How long until it starts, as far as is known: the estimate, or the usual wake of a host that is off; else 0."""
    if view.status not in WAITING_STATUSES:
        return 0
    if view.eta is not None and view.eta.start_at is not None:
        return max(0, round((view.eta.start_at - now).total_seconds()))
    if hall.services.hosts.has_online_host(view.endpoint):
        return 0
    measured = hall.services.wait_reasons.usual_wake_s(view.endpoint)
    return round(DEFAULT_WAKE_S if measured is None else measured)


def build_job_payload(hall: CommandContext, view: JobView, push_id: str = "") -> JobPayload:
    """Where the job stands."""
    now = hall.now()
    return JobPayload(
        id=push_id,
        job_id=view.id,
        status=view.status,
        queue_position=view.queue_position,
        wait_seconds=estimate_wait_s(hall, view, now),
        waited_seconds=_waited_s(view, now) if view.status in WAITING_STATUSES else None,
        missing=view.missing,
        message=view.message or "",
    )


def _waited_s(view: JobView, now: datetime) -> int:
    """Since the submit, or the retry."""
    since = view.queued_at if view.round > 1 and view.queued_at is not None else view.created_at
    return max(0, int((now - since).total_seconds()))


def final_result(view: JobView) -> tuple[str, Any]:
    """`error_msg` and `result` of a job that has ended; the first is empty when it succeeded."""
    if view.status is Status.SUCCEEDED:
        return "", view
    said = view.message or ""
    if view.error is not None:
        return said, structs.replace(view, error=structs.replace(view.error, message=said))
    error = {"code": _END_CODES.get(view.status, view.status), "message": said, "blame": "client", "retryable": False}
    return said, structs.asdict(view) | {"error": error}


def is_final(view: JobView) -> bool:
    """Whether nothing more will come of this round."""
    return view.status in FINAL_STATUSES


def task_type_of(hall: CommandContext, endpoint: str) -> str:
    """The `task_type` of pushes about an endpoint's jobs: HeyGem's has a name of its own on this wire."""
    return HEYGEM_TASK if endpoint == hall.services.settings.heygem.endpoint else endpoint


# MERGED edge/facades/gateway/pushes.py: From the items of an owner's stream to the frames that its sockets are sent.


HOST_NOTICE_KINDS: Mapping[str, EnvelopeType] = {
    "host_online": EnvelopeType.ONLINE,
    "host_offline": EnvelopeType.OFFLINE,
}


class Push(NamedTuple):
    """A frame and the id that resumes behind it."""

    id: str
    text: str


class PushBuilder:
    """Makes frames for one owner in one language."""

    def __init__(self, hall: CommandContext, owner: str, language: Language) -> None:
        self._context = hall
        self._owner = owner
        self._language = language
        self._builders: Mapping[type, Callable[[str, Any], Awaitable[Envelope]]] = {
            JobView: self._state_envelope,
            ProgressEvent: self._progress_envelope,
        }

    async def build_push(self, item: StreamItem) -> Push | None:
        """The frame that `item` is told by; None for what this wire does not tell (logs)."""
        make = self._builders.get(type(item.data))
        return Push(item.id, encode_envelope(await make(item.id, item.data))) if make else None

    async def build_state_push(self, push_id: str, view: JobView) -> Push:
        """Where the job stands, or how it ended."""
        return Push(push_id, encode_envelope(await self._state_envelope(push_id, view)))

    async def _state_envelope(self, push_id: str, view: JobView) -> Envelope:
        origin = await self._context.submit_metadata.for_view(view)
        payload = build_job_payload(self._context, view, push_id)
        if not is_final(view):
            return self._envelope(EnvelopeType.STATUS, origin, payload, result=view)
        said, result = final_result(view)
        return self._envelope(EnvelopeType.RESULT, origin, payload, result=result, error=bool(said), error_msg=said)

    async def _progress_envelope(self, push_id: str, event: ProgressEvent) -> Envelope:
        origin = await self._context.submit_metadata.for_job(JobKey(self._owner, event.job_id))
        payload = ProgressPayload(
            id=push_id,
            job_id=event.job_id,
            fraction=event.fraction,
            stage=event.stage,
            done=event.done,
            total=event.total,
            message=messages.format_status(Status.RUNNING, self._language),
        )
        return self._envelope(EnvelopeType.PROGRESS, origin, payload)

    def _envelope(self, kind: EnvelopeType, origin: SubmitMetadata, payload: Any, **fields: Any) -> Envelope:
        return Envelope(
            type=kind,
            ts=unix_seconds(self._context.now()),
            request_id=origin.request_id,
            trace_id=origin.trace_id,
            task_type=task_type_of(self._context, origin.endpoint),
            payload=payload,
            **fields,
        )


def encode_host_notice(notice: HostNotice, language: Language, push_id: str) -> str | None:
    """A host went on or off, without a request_id; None for what this wire does not tell."""
    kind = HOST_NOTICE_KINDS.get(notice.kind)
    if kind is None:
        return None
    said = messages.format_notice(notice.kind, language)
    payload = PowerPayload(id=push_id, host=notice.host, message=said, at=notice.at)
    return encode_envelope(Envelope(type=kind, ts=unix_seconds(notice.at), payload=payload))
