"""Build envelopes: replies to a message, error replies, and pushes about jobs and hosts."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from msgspec import structs

from edge.core import messages
from edge.core.messages import DEFAULT_WAKE_S
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
from schemas.texts import Language

HEYGEM_TASK = "heygem_submit"
# Final states without success and without a failure on the job.
_END_CODES = {Status.CANCELLED: "cancelled", Status.EXPIRED: "expired"}


def reply(
    context: CommandContext, to: ClientMessage, kind: EnvelopeType, payload: Any = None, **fields: Any
) -> Envelope:
    """Return the reply to a message, with its `request_id` and `trace_id`."""
    names = {"request_id": to.request_id, "trace_id": to.trace_id, "task_type": to.task_type}
    return Envelope(
        type=kind, ts=unix_seconds(context.now()), payload={} if payload is None else payload, **(names | fields)
    )


def error_reply(context: CommandContext, problem: ProblemError, to: ClientMessage, language: Language) -> Envelope:
    """Return the error reply for a problem. `result.error` has the fields of the HTTP problem document."""
    text = messages.format_problem(problem, language)
    detail = {
        "code": problem.code,
        "message": text,
        "detail": problem.detail,
        "errors": problem.errors,
        "missing": problem.missing,
        "retry_after_s": problem.retry_after_s,
    }
    return reply(context, to, EnvelopeType.ERROR, error=True, error_msg=text, result={"error": detail})


def estimate_wait_s(context: CommandContext, view: JobView, now: datetime) -> int:
    """Return the estimated seconds until the start, or the usual wake time of a host that is off, or else 0."""
    if view.status not in WAITING_STATUSES:
        return 0
    if view.eta is not None and view.eta.start_at is not None:
        return max(0, round((view.eta.start_at - now).total_seconds()))
    if context.services.hosts.has_online_host(view.endpoint):
        return 0
    measured = context.services.wait_reasons.usual_wake_s(view.endpoint)
    return round(DEFAULT_WAKE_S if measured is None else measured)


def build_job_payload(context: CommandContext, view: JobView, push_id: str = "") -> JobPayload:
    """Return the payload that every envelope about a job carries: its state and its expected wait."""
    now = context.now()
    return JobPayload(
        id=push_id,
        job_id=view.id,
        status=view.status,
        queue_position=view.queue_position,
        wait_seconds=estimate_wait_s(context, view, now),
        waited_seconds=_waited_s(view, now) if view.status in WAITING_STATUSES else None,
        missing=view.missing,
        message=view.message or "",
    )


def _waited_s(view: JobView, now: datetime) -> int:
    """Return the seconds since the submit or the retry."""
    since = view.queued_at if view.round > 1 and view.queued_at is not None else view.created_at
    return max(0, int((now - since).total_seconds()))


def final_result(view: JobView) -> tuple[str, Any]:
    """Return `error_msg` and `result` of a job that has ended. `error_msg` is empty for a job that succeeded."""
    if view.status is Status.SUCCEEDED:
        return "", view
    text = view.message or ""
    if view.error is not None:
        return text, structs.replace(view, error=structs.replace(view.error, message=text))
    error = {"code": _END_CODES.get(view.status, view.status), "message": text, "blame": "client", "retryable": False}
    return text, structs.asdict(view) | {"error": error}


def is_final(view: JobView) -> bool:
    """Return whether this round of the job has ended."""
    return view.status in FINAL_STATUSES


def task_type_of(context: CommandContext, endpoint: str) -> str:
    """Return the `task_type` of pushes about jobs of `endpoint`. HeyGem has a name of its own in this protocol."""
    return HEYGEM_TASK if endpoint == context.heygem_endpoint else endpoint


HOST_NOTICE_KINDS: Mapping[str, EnvelopeType] = {
    "host_online": EnvelopeType.ONLINE,
    "host_offline": EnvelopeType.OFFLINE,
}


class Push(NamedTuple):
    """A frame, and the id from which a client resumes after it."""

    id: str
    text: str


class PushBuilder:
    """Builds the pushes of one owner in one language."""

    def __init__(self, context: CommandContext, owner: str, language: Language) -> None:
        self._context = context
        self._owner = owner
        self._language = language
        self._builders: Mapping[type, Callable[[str, Any], Awaitable[Envelope]]] = {
            JobView: self._state_envelope,
            ProgressEvent: self._progress_envelope,
        }

    async def build_push(self, item: StreamItem) -> Push | None:
        """Return the push for `item`; None for items that this protocol does not carry (logs)."""
        build = self._builders.get(type(item.data))
        return Push(item.id, encode_envelope(await build(item.id, item.data))) if build else None

    async def build_state_push(self, push_id: str, view: JobView) -> Push:
        """Return the push with the state of the job, or with its result if it has ended."""
        return Push(push_id, encode_envelope(await self._state_envelope(push_id, view)))

    async def _state_envelope(self, push_id: str, view: JobView) -> Envelope:
        metadata = await self._context.submit_metadata.for_view(view)
        payload = build_job_payload(self._context, view, push_id)
        if not is_final(view):
            return self._envelope(EnvelopeType.STATUS, metadata, payload, result=view)
        text, result = final_result(view)
        return self._envelope(EnvelopeType.RESULT, metadata, payload, result=result, error=bool(text), error_msg=text)

    async def _progress_envelope(self, push_id: str, event: ProgressEvent) -> Envelope:
        metadata = await self._context.submit_metadata.for_job(JobKey(self._owner, event.job_id))
        payload = ProgressPayload(
            id=push_id,
            job_id=event.job_id,
            fraction=event.fraction,
            stage=event.stage,
            done=event.done,
            total=event.total,
            message=messages.format_status(Status.RUNNING, self._language),
        )
        return self._envelope(EnvelopeType.PROGRESS, metadata, payload)

    def _envelope(self, kind: EnvelopeType, metadata: SubmitMetadata, payload: Any, **fields: Any) -> Envelope:
        return Envelope(
            type=kind,
            ts=unix_seconds(self._context.now()),
            request_id=metadata.request_id,
            trace_id=metadata.trace_id,
            task_type=task_type_of(self._context, metadata.endpoint),
            payload=payload,
            **fields,
        )


def encode_host_notice(notice: HostNotice, language: Language, push_id: str) -> str | None:
    """Return the frame for a host that went on or off, without a request_id; None for other notices."""
    kind = HOST_NOTICE_KINDS.get(notice.kind)
    if kind is None:
        return None
    text = messages.format_notice(notice.kind, language)
    payload = PowerPayload(id=push_id, host=notice.host, message=text, at=notice.at)
    return encode_envelope(Envelope(type=kind, ts=unix_seconds(notice.at), payload=payload))
