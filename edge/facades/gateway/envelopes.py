"""Envelopes: replies to a message, error replies, and pushes about jobs and hosts, with the state that they need.

All sockets of one edge share that state. The event stream of an owner is read once per language and key, and sent to
all sockets that listen: a stream per socket would cost one consumer of the broker each.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import structlog
from anyio import CancelScope, Event, sleep
from anyio.lowlevel import checkpoint
from msgspec import Struct, structs

from bus.interface import BusError, JobStore, VersionedRecord
from edge.core import messages
from edge.core.clock import Clock
from edge.core.messages import DEFAULT_WAKE_S
from edge.hosts.registry import HostNotice
from edge.http.dependencies import EdgeServices
from edge.index.rows import JobFilters
from edge.jobs.event_stream import ProgressEvent, StreamItem
from edge.jobs.view import Asker
from schemas.events import RecordUnreadable
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
from schemas.job import FINAL_STATUSES, WAITING_STATUSES, Job, JobKey, Status, Token
from schemas.job_view import JobView
from schemas.problems import ProblemError
from schemas.texts import Language

METADATA_CACHE_LIMIT = 20_000  # jobs; the least recently used one is read again

_log = structlog.get_logger()


class SubmitMetadata(NamedTuple):
    """The names of a submit, which every push about its job carries.

    `created_at`: when the job was created; a client may use an id again after a deletion.
    """

    request_id: str = ""
    trace_id: str = ""
    endpoint: str = ""
    created_at: datetime | None = None


class SubmitMetadataCache:
    """Caches the names of submits. They never change during the life of a job."""

    def __init__(self, records: JobStore) -> None:
        self._records = records
        self._cache: OrderedDict[JobKey, SubmitMetadata] = OrderedDict()

    def store(self, job: Job) -> SubmitMetadata:
        """Cache the names of `job` and return them."""
        metadata = SubmitMetadata(job.request_id, job.trace_id, job.endpoint, job.created_at)
        self._cache[job.key] = metadata
        self._cache.move_to_end(job.key)
        if len(self._cache) > METADATA_CACHE_LIMIT:
            self._cache.popitem(last=False)
        return metadata

    async def for_view(self, view: JobView) -> SubmitMetadata:
        """Return the names for the job of `view`."""
        key = JobKey(view.owner, view.id)
        known = self._cache.get(key)
        return known if known is not None and known.created_at == view.created_at else await self._load(key)

    async def for_job(self, key: JobKey) -> SubmitMetadata:
        """Return the names for a job that reports progress."""
        return self._cache.get(key) or await self._load(key)

    async def _load(self, key: JobKey) -> SubmitMetadata:
        """Read the names. Empty names for a job that cannot be read: a push without them is better than no push."""
        try:
            entry = await self._records.read(key)
        except (BusError, RecordUnreadable):
            return SubmitMetadata()
        return SubmitMetadata() if entry is None else self.store(entry.record.job)


class CommandContext(Struct, frozen=True):
    """The arguments that every command shares. `heygem_endpoint`: the endpoint that `heygem_submit` stands for."""

    services: EdgeServices
    heygem_endpoint: Token
    submit_metadata: SubmitMetadataCache
    now: Clock


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


STREAM_RETRY_DELAY_S = 1.0
WAITING_JOBS_LIMIT = 500  # waiting jobs of one status in one round of state pushes, newest first
WAITING_FRAMES_LIMIT = 5000  # state pushes of one round, over all sockets


class PushSubscriber(Protocol):
    """A socket that receives its owner's pushes. Its methods must not block."""

    def receive_push(self, push: Push) -> None:
        """Queue a push about a change. Must not drop it."""
        ...

    def receive_push_if_slack(self, push: Push) -> None:
        """Send a push about an unchanged state, if the socket keeps up. It is repeated in ten seconds."""
        ...


class OwnerBroadcaster:
    """Reads the stream from its creation on. `last_id`: the last id that the subscribers received."""

    def __init__(self, context: CommandContext, owner: str, asker: Asker) -> None:
        self.owner = owner
        self.push_builder = PushBuilder(context, owner, asker.language)
        self.last_id = ""
        self.ready = Event()
        self.scope = CancelScope()
        self.subscribers: set[PushSubscriber] = set()
        self.session_count = 0
        self._services = context.services
        self._asker = asker
        self._cursors: dict[Status, str | None] = {}
        self._sent_revisions: dict[str, int] = {}  # by job id, in this round of state pushes
        self._older_sent_revisions: dict[str, int] = {}  # and in the round before

    async def run(self) -> None:
        """Read until `scope` is cancelled. Retries while the broker is unreachable."""
        with self.scope:
            while True:
                try:
                    await self._read()
                except BusError as error:
                    _log.warning("gateway_feed_failed", owner=self.owner, error=str(error))
                await sleep(STREAM_RETRY_DELAY_S)

    async def _read(self) -> None:
        self.last_id = self.last_id or await self._services.bus.feed.last_id()
        self.ready.set()
        async with aclosing(self._services.event_streams.follow(self.owner, None, self.last_id, self._asker)) as items:
            async for item in items:
                push = await self.push_builder.build_push(item)
                if isinstance(item.data, JobView):
                    self._sent_revisions[item.data.id] = item.data.revision
                # No await between these two: a new subscriber starts exactly after `last_id`.
                self.last_id = item.id
                if push is not None:
                    for subscriber in tuple(self.subscribers):
                        subscriber.receive_push(push)

    async def send_waiting_states(self) -> None:
        """Push the state of every waiting job.

        If that needs too many frames, push some of them and continue with the others in the next round.
        Raises BusError, ProblemError.
        """
        page_size = max(1, min(WAITING_JOBS_LIMIT, WAITING_FRAMES_LIMIT // max(1, len(self.subscribers))))
        for status in WAITING_STATUSES:
            page = await self._services.index.list_jobs(
                self.owner, JobFilters(statuses=(status,)), page_size, self._cursors.get(status)
            )
            self._cursors[status] = page.next_cursor
            for entry in page.records:
                await self._send_state(entry)
        self._older_sent_revisions, self._sent_revisions = self._sent_revisions, {}

    async def _send_state(self, entry: VersionedRecord) -> None:
        await checkpoint()  # yields to other tasks: there may be hundreds of jobs and a thousand sockets
        push = await self.push_builder.build_state_push(
            self.last_id, self._services.job_views.build_without_progress(entry, self._asker)
        )
        if entry.revision >= self._last_sent_revision(entry.record.job.id):
            for subscriber in tuple(self.subscribers):
                subscriber.receive_push_if_slack(push)

    def _last_sent_revision(self, job_id: str) -> int:
        """Return the newest revision that was pushed. The index lags a little, and an older state must not follow."""
        return max(self._sent_revisions.get(job_id, 0), self._older_sent_revisions.get(job_id, 0))
