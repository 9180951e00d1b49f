"""From the items of an owner's stream to the frames that its sockets are sent."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from edge.facades.gateway.envelopes import ended, is_final, job_payload, task_of
from edge.facades.gateway.hall import Hall
from edge.facades.gateway.origins import Origin
from edge.facades.gateway.wire import seconds, text
from edge.services import messages
from edge.services.hosts import HostNotice
from edge.services.messages import Language
from edge.services.stream import ProgressEvent, StreamItem
from schemas.envelope import Envelope, Kind, PowerPayload, ProgressPayload
from schemas.job import JobKey
from schemas.view import JobView
from schemas.words import Status

BROADCAST: Mapping[str, Kind] = {"host_online": Kind.ONLINE, "host_offline": Kind.OFFLINE}


class Push(NamedTuple):
    """A frame and the id that resumes behind it."""

    id: str
    text: str


class Pushes:
    """Makes frames for one owner in one language."""

    def __init__(self, hall: Hall, owner: str, language: Language) -> None:
        self._hall = hall
        self._owner = owner
        self._language = language
        self._kinds: Mapping[type, Callable[[str, Any], Awaitable[Envelope]]] = {
            JobView: self._state,
            ProgressEvent: self._progress,
        }

    async def push(self, item: StreamItem) -> Push | None:
        """The frame that `item` is told by; None for what this wire does not tell (logs)."""
        make = self._kinds.get(type(item.data))
        return Push(item.id, text(await make(item.id, item.data))) if make else None

    async def state(self, push_id: str, view: JobView) -> Push:
        """Where the job stands, or how it ended."""
        return Push(push_id, text(await self._state(push_id, view)))

    async def _state(self, push_id: str, view: JobView) -> Envelope:
        origin = await self._hall.origins.of_state(view)
        payload = job_payload(self._hall, view, push_id)
        if not is_final(view):
            return self._envelope(Kind.STATUS, origin, payload, result=view)
        said, result = ended(view)
        return self._envelope(Kind.RESULT, origin, payload, result=result, error=bool(said), error_msg=said)

    async def _progress(self, push_id: str, event: ProgressEvent) -> Envelope:
        origin = await self._hall.origins.of_note(JobKey(self._owner, event.job_id))
        payload = ProgressPayload(
            id=push_id,
            job_id=event.job_id,
            fraction=event.fraction,
            stage=event.stage,
            done=event.done,
            total=event.total,
            message=messages.status(Status.RUNNING, self._language),
        )
        return self._envelope(Kind.PROGRESS, origin, payload)

    def _envelope(self, kind: Kind, origin: Origin, payload: Any, **fields: Any) -> Envelope:
        return Envelope(
            type=kind,
            ts=seconds(self._hall.now()),
            request_id=origin.request_id,
            trace_id=origin.trace_id,
            task_type=task_of(self._hall, origin.endpoint),
            payload=payload,
            **fields,
        )


def broadcast(notice: HostNotice, language: Language, push_id: str) -> str | None:
    """A host went on or off, without a request_id; None for what this wire does not tell."""
    kind = BROADCAST.get(notice.kind)
    if kind is None:
        return None
    said = messages.notice(notice.kind, language)
    payload = PowerPayload(id=push_id, host=notice.host, message=said, at=notice.at)
    return text(Envelope(type=kind, ts=seconds(notice.at), payload=payload))
