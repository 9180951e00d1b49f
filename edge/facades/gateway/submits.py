"""`gpu.job.submit`: from the payload to the intake, one job or many, and what is answered."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import anyio
from msgspec import structs

from edge.facades.gateway.callers import Caller
from edge.facades.gateway.envelopes import HEYGEM_TASK, answer, job_payload, refusal
from edge.facades.gateway.hall import Hall
from edge.parts import Parts
from edge.problems import refusal_for
from edge.services import messages
from edge.services.inputs import invalid
from edge.services.intake import Accepted
from edge.services.messages import Language
from edge.services.sameness import submit_under
from schemas.access import Scope
from schemas.endpoint import Endpoint
from schemas.envelope import BatchPayload, Envelope, JobPayload, Kind, Message, Rejected
from schemas.errors import FieldError, Refused
from schemas.job import JobKey, Submission
from schemas.view import JobView

BATCH = 1000  # jobs of one message
AT_ONCE = 16

_OPTIONS = frozenset(Submission.__struct_fields__) - {"endpoint", "input", "await_input"}
_OURS = frozenset({"code", "jobs", "await_input"})  # never part of an endpoint's input


class Made(NamedTuple):
    """A job that was accepted, or that an equal request made before."""

    view: JobView
    payload: JobPayload
    trace_id: str


def named(parts: Parts, task_type: str) -> Endpoint:
    """The endpoint that a `task_type` stands for. Raises Refused `endpoint_unknown`."""
    return parts.catalog.get(parts.settings.heygem.endpoint if task_type == HEYGEM_TASK else task_type)


def body_of(endpoint: Endpoint, payload: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a submit: options and input stand side by side in `payload`, or the input in an object `input`.

    A field that the endpoint's own input has is input, whatever it is called.
    """
    fields = endpoint.input.get("properties") or {}
    rest = {name: value for name, value in payload.items() if name not in _OURS}
    if isinstance(rest.get("input"), dict) and "input" not in fields:
        given = rest.pop("input")
        options = rest
    else:
        options = {name: rest.pop(name) for name in _OPTIONS & rest.keys() - fields.keys()}
        given = rest
    options.pop("endpoint", None)
    return {"endpoint": endpoint.name, "input": given, **options, "await_input": True}


async def submit(hall: Hall, caller: Caller, message: Message) -> list[Envelope]:
    """Accept what the message asks for: `ack`, or `gpu.power.offline` while no host of the endpoint is up."""
    caller.needs(Scope.JOBS_WRITE)
    jobs = message.payload.get("jobs")
    if jobs is not None:
        return [await _batch(hall, caller, message, jobs)]
    made = await _one(hall, caller, message, message.payload, message.request_id)
    online = hall.parts.hosts.online(made.view.endpoint)
    payload = made.payload if online else _offline(hall.parts, made, caller.language)
    kind = Kind.ACK if online else Kind.OFFLINE
    return [answer(hall, message, kind, payload, result=made.view, trace_id=made.trace_id)]


async def _one(hall: Hall, caller: Caller, message: Message, payload: Mapping[str, Any], name: str) -> Made:
    """`name`: the request's, under which the same request is the same job. Raises Refused."""
    parts = hall.parts
    code = payload.get("code")
    if code is not None and not isinstance(code, str):
        raise invalid(FieldError("$.payload.code", "must be a string: it is the job's id"))
    task = payload.get("endpoint") if not message.task_type else message.task_type
    if not isinstance(task, str) or not task:
        raise invalid(FieldError("$.task_type", "names no endpoint: send an endpoint's name, or heygem_submit"))
    body = body_of(named(parts, task), payload)
    accepted = await _accepted(parts, caller.owner, body, code, name, message)
    job = accepted.entry.recorded.job
    hall.origins.learn(job)
    view = await parts.viewer.job(accepted.entry, caller.asker)
    return Made(view, job_payload(hall, view), job.trace_id)


async def _accepted(  # noqa: PLR0913, PLR0917 - each is one fact of the request
    parts: Parts, owner: str, body: dict[str, Any], code: str | None, name: str, message: Message
) -> Accepted:
    """The job that is made, or that is there: by another door, a code may stand for the same work in other words."""
    about = {"trace_id": message.trace_id, "request_id": message.request_id}
    if code is not None:
        return await submit_under(parts.intake, parts.bus.records, parts.catalog, JobKey(owner, code), body, **about)
    return await parts.intake.submit(owner, body, idempotency_key=name or None, **about)


def _offline(parts: Parts, made: Made, language: Language) -> JobPayload:
    """The same, told by the host's absence, whatever else the job waits for."""
    said = messages.offline(language, parts.hosts.wake_s(made.view.endpoint))
    return structs.replace(made.payload, message=said)


async def _batch(hall: Hall, caller: Caller, message: Message, jobs: Any) -> Envelope:
    """One answer for all: what was accepted, in order, and what was not."""
    if not isinstance(jobs, list) or not 1 <= len(jobs) <= BATCH:
        raise invalid(FieldError("$.payload.jobs", f"must be a list of 1 to {BATCH} jobs"))
    made: list[Made | Refused] = [Refused("internal", "not tried")] * len(jobs)
    limiter = anyio.CapacityLimiter(AT_ONCE)

    async def one(index: int, payload: Any) -> None:
        async with limiter:
            made[index] = await _or_refused(hall, caller, message, payload, index)

    async with anyio.create_task_group() as tasks:
        for index, payload in enumerate(jobs):
            tasks.start_soon(one, index, payload)
    return _batch_answer(hall, caller, message, made)


async def _or_refused(hall: Hall, caller: Caller, message: Message, payload: Any, index: int) -> Made | Refused:
    if not isinstance(payload, dict):
        return invalid(FieldError(f"$.payload.jobs[{index}]", "must be an object"))
    named_so = f"{message.request_id}[{index}]" if message.request_id else ""
    try:
        return await _one(hall, caller, message, payload, named_so)
    except Exception as error:  # the border: others of the batch have been accepted
        return refusal_for(error)


def _batch_answer(hall: Hall, caller: Caller, message: Message, made: Sequence[Made | Refused]) -> Envelope:
    refused = [(index, one) for index, one in enumerate(made) if isinstance(one, Refused)]
    accepted = [one for one in made if isinstance(one, Made)]
    rejected = tuple(Rejected(index=index, problem=one.problem) for index, one in refused)
    if not accepted:
        envelope = refusal(hall, refused[0][1], message, caller.language)
        return structs.replace(envelope, payload={"jobs": (), "rejected": rejected})
    off = [one for one in accepted if not hall.parts.hosts.online(one.view.endpoint)]
    jobs = tuple(_offline(hall.parts, one, caller.language) if one in off else one.payload for one in accepted)
    first = {name: getattr(jobs[0], name) for name in BatchPayload.__struct_fields__ if hasattr(jobs[0], name)}
    payload = BatchPayload(**first, jobs=jobs, rejected=rejected)
    kind = Kind.OFFLINE if off else Kind.ACK
    return answer(hall, message, kind, payload, result={"jobs": [one.view for one in accepted]})
