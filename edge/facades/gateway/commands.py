"""`gpu.job.submit`: from the payload to the intake, one job or many, and what is answered."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import anyio
from msgspec import structs

from edge.core import messages
from edge.core.messages import Language
from edge.core.validation import input_invalid_problem
from edge.facades.gateway.auth import SocketCaller
from edge.facades.gateway.context import CommandContext
from edge.facades.gateway.envelopes import HEYGEM_TASK, build_job_payload, error_reply, reply
from edge.http.dependencies import EdgeServices
from edge.http.problems import problem_for_error
from edge.jobs.service import AcceptedSubmission
from schemas.asset import DIGEST_SCHEME
from schemas.auth import Scope
from schemas.endpoint import Endpoint
from schemas.gateway_protocol import (
    BatchPayload,
    ClientMessage,
    DeletedPayload,
    Envelope,
    EnvelopeType,
    JobPayload,
    RejectedJobPayload,
)
from schemas.ids import JobKey, is_token
from schemas.job import Submission
from schemas.job_view import JobView
from schemas.problems import FieldError, ProblemError

BATCH_JOBS_LIMIT = 1000  # jobs of one message
CONCURRENT_SUBMITS_LIMIT = 16

_SUBMIT_OPTIONS = frozenset(Submission.__struct_fields__) - {"endpoint", "input", "await_input"}
_RESERVED_FIELDS = frozenset({"code", "jobs", "await_input"})  # never part of an endpoint's input


class SubmittedJob(NamedTuple):
    """A job that was accepted, or that an equal request made before."""

    view: JobView
    payload: JobPayload
    trace_id: str


def resolve_endpoint(parts: EdgeServices, task_type: str) -> Endpoint:
    """The endpoint that a `task_type` stands for. Raises Refused `endpoint_unknown`."""
    return parts.endpoints.get(parts.settings.heygem.endpoint if task_type == HEYGEM_TASK else task_type)


def build_submit_body(endpoint: Endpoint, payload: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a submit: options and input stand side by side in `payload`, or the input in an object `input`.

    A field that the endpoint's own input has is input, whatever it is called.
    """
    fields = endpoint.input.get("properties") or {}
    rest = {name: value for name, value in payload.items() if name not in _RESERVED_FIELDS}
    if isinstance(rest.get("input"), dict) and "input" not in fields:
        given = rest.pop("input")
        options = rest
    else:
        options = {name: rest.pop(name) for name in _SUBMIT_OPTIONS & rest.keys() - fields.keys()}
        given = rest
    options.pop("endpoint", None)
    return {"endpoint": endpoint.name, "input": given, **options, "await_input": True}


async def submit_jobs(hall: CommandContext, caller: SocketCaller, message: ClientMessage) -> list[Envelope]:
    """Accept what the message asks for: `ack`, or `gpu.power.offline` while no host of the endpoint is up."""
    caller.require_scope(Scope.JOBS_WRITE)
    jobs = message.payload.get("jobs")
    if jobs is not None:
        return [await _submit_batch(hall, caller, message, jobs)]
    made = await _submit_one(hall, caller, message, message.payload, message.request_id)
    online = hall.services.hosts.has_online_host(made.view.endpoint)
    payload = made.payload if online else _offline_payload(hall.services, made, caller.language)
    kind = EnvelopeType.ACK if online else EnvelopeType.OFFLINE
    return [reply(hall, message, kind, payload, result=made.view, trace_id=made.trace_id)]


async def _submit_one(
    hall: CommandContext, caller: SocketCaller, message: ClientMessage, payload: Mapping[str, Any], name: str
) -> SubmittedJob:
    """`name`: the request's, under which the same request is the same job. Raises Refused."""
    parts = hall.services
    code = payload.get("code")
    if code is not None and not isinstance(code, str):
        raise input_invalid_problem(FieldError("$.payload.code", "must be a string: it is the job's id"))
    task = payload.get("endpoint") if not message.task_type else message.task_type
    if not isinstance(task, str) or not task:
        raise input_invalid_problem(
            FieldError("$.task_type", "names no endpoint: send an endpoint's name, or heygem_submit")
        )
    body = build_submit_body(resolve_endpoint(parts, task), payload)
    accepted = await _accept(parts, caller.owner, body, code, name, message)
    job = accepted.record.record.job
    hall.submit_metadata.store(job)
    view = await parts.job_views.build(accepted.record, caller.asker)
    return SubmittedJob(view, build_job_payload(hall, view), job.trace_id)


async def _accept(  # noqa: PLR0913, PLR0917 - each is one fact of the request
    parts: EdgeServices, owner: str, body: dict[str, Any], code: str | None, name: str, message: ClientMessage
) -> AcceptedSubmission:
    """The job that is made, or that is there: by another door, a code may stand for the same work in other words."""
    about = {"trace_id": message.trace_id, "request_id": message.request_id}
    if code is not None:
        return await parts.jobs.submit_equivalent(JobKey(owner, code), body, **about)
    return await parts.jobs.submit(owner, body, idempotency_key=name or None, **about)


def _offline_payload(parts: EdgeServices, made: SubmittedJob, language: Language) -> JobPayload:
    """The same, told by the host's absence, whatever else the job waits for."""
    said = messages.format_host_off(language, parts.wait_reasons.usual_wake_s(made.view.endpoint))
    return structs.replace(made.payload, message=said)


async def _submit_batch(hall: CommandContext, caller: SocketCaller, message: ClientMessage, jobs: Any) -> Envelope:
    """One answer for all: what was accepted, in order, and what was not."""
    if not isinstance(jobs, list) or not 1 <= len(jobs) <= BATCH_JOBS_LIMIT:
        raise input_invalid_problem(FieldError("$.payload.jobs", f"must be a list of 1 to {BATCH_JOBS_LIMIT} jobs"))
    made: list[SubmittedJob | ProblemError] = [ProblemError("internal", "not tried")] * len(jobs)
    limiter = anyio.CapacityLimiter(CONCURRENT_SUBMITS_LIMIT)

    async def one(index: int, payload: Any) -> None:
        async with limiter:
            made[index] = await _submit_or_refusal(hall, caller, message, payload, index)

    async with anyio.create_task_group() as tasks:
        for index, payload in enumerate(jobs):
            tasks.start_soon(one, index, payload)
    return _batch_reply(hall, caller, message, made)


async def _submit_or_refusal(
    hall: CommandContext, caller: SocketCaller, message: ClientMessage, payload: Any, index: int
) -> SubmittedJob | ProblemError:
    if not isinstance(payload, dict):
        return input_invalid_problem(FieldError(f"$.payload.jobs[{index}]", "must be an object"))
    named_so = f"{message.request_id}[{index}]" if message.request_id else ""
    try:
        return await _submit_one(hall, caller, message, payload, named_so)
    except Exception as error:  # the border: others of the batch have been accepted
        return problem_for_error(error)


def _batch_reply(
    hall: CommandContext, caller: SocketCaller, message: ClientMessage, made: Sequence[SubmittedJob | ProblemError]
) -> Envelope:
    refused = [(index, one) for index, one in enumerate(made) if isinstance(one, ProblemError)]
    accepted = [one for one in made if isinstance(one, SubmittedJob)]
    rejected = tuple(RejectedJobPayload(index=index, problem=one.problem) for index, one in refused)
    if not accepted:
        envelope = error_reply(hall, refused[0][1], message, caller.language)
        return structs.replace(envelope, payload={"jobs": (), "rejected": rejected})
    off = [one for one in accepted if not hall.services.hosts.has_online_host(one.view.endpoint)]
    jobs = tuple(
        _offline_payload(hall.services, one, caller.language) if one in off else one.payload for one in accepted
    )
    first = {name: getattr(jobs[0], name) for name in BatchPayload.__struct_fields__ if hasattr(jobs[0], name)}
    payload = BatchPayload(**first, jobs=jobs, rejected=rejected)
    kind = EnvelopeType.OFFLINE if off else EnvelopeType.ACK
    return reply(hall, message, kind, payload, result={"jobs": [one.view for one in accepted]})


# MERGED edge/facades/gateway/commands.py: What a client may ask for, as a table: the type of its message to the
# function that answers it.


Command = Callable[[CommandContext, SocketCaller, ClientMessage], Awaitable[list[Envelope]]]

DELETE_TASK = "delete_asset"


async def _handle_submit(hall: CommandContext, caller: SocketCaller, message: ClientMessage) -> list[Envelope]:
    """A job, or what other `task_type`s mean."""
    act = _COMMANDS_BY_TASK_TYPE.get(message.task_type, submit_jobs)
    return await act(hall, caller, message)


async def _handle_delete_asset(hall: CommandContext, caller: SocketCaller, message: ClientMessage) -> list[Envelope]:
    """Drop an asset at once; hosts drop it before they next take work. Wakes nobody."""
    caller.require_scope(Scope.ASSETS_WRITE)
    sha256 = message.payload.get("sha256")
    if not isinstance(sha256, str):
        raise input_invalid_problem(FieldError("$.payload.sha256", "must name the asset"))
    try:
        deleted = await hall.services.assets.delete(caller.owner, sha256.removeprefix(DIGEST_SCHEME).lower())
    except ProblemError as refused:
        if refused.code != "not_found":
            raise
        return [_asset_not_found_reply(hall, caller, message, sha256)]
    said = messages.DELETED_TEXT.render(caller.language)
    result = {"sha256": deleted.sha256, "hosts_pending": deleted.hosts_pending, "message": said}
    return [
        reply(hall, message, EnvelopeType.RESULT, DeletedPayload(sha256=deleted.sha256, message=said), result=result)
    ]


def _asset_not_found_reply(hall: CommandContext, caller: SocketCaller, message: ClientMessage, sha256: str) -> Envelope:
    """Clients compare the text."""
    said = messages.DELETE_FAILED_TEXT.render(caller.language)
    error = {"code": "not_found", "message": said}
    payload = DeletedPayload(sha256=sha256, message=said)
    return reply(hall, message, EnvelopeType.RESULT, payload, error=True, error_msg=said, result={"error": error})


def _parse_job_key(caller: SocketCaller, message: ClientMessage) -> JobKey:
    job_id = message.payload.get("job_id") or message.payload.get("code")
    if not isinstance(job_id, str) or not is_token(job_id):
        raise input_invalid_problem(FieldError("$.payload.job_id", "a job id is 1 to 64 of A-Z a-z 0-9 _ -"))
    return JobKey(caller.owner, job_id)


async def _handle_query(hall: CommandContext, caller: SocketCaller, message: ClientMessage) -> list[Envelope]:
    """The job as it is."""
    caller.require_scope(Scope.JOBS_READ)
    entry = await hall.services.jobs.read(_parse_job_key(caller, message))
    view = await hall.services.job_views.build(entry, caller.asker)
    return [reply(hall, message, EnvelopeType.STATUS, build_job_payload(hall, view), result=view)]


async def _handle_cancel(hall: CommandContext, caller: SocketCaller, message: ClientMessage) -> list[Envelope]:
    """Stop it, waiting or running."""
    caller.require_scope(Scope.JOBS_WRITE)
    entry = await hall.services.jobs.cancel(_parse_job_key(caller, message))
    view = await hall.services.job_views.build(entry, caller.asker)
    return [reply(hall, message, EnvelopeType.STATUS, build_job_payload(hall, view), result=view)]


async def _handle_hosts(hall: CommandContext, caller: SocketCaller, message: ClientMessage) -> list[Envelope]:
    """Every known host, with the jobs of the caller's owner."""
    caller.require_scope(Scope.HOSTS_READ)
    hosts = hall.services.power.views(hall.services.hosts.views(caller.owner))
    online = any(host.state == "online" for host in hosts)
    return [reply(hall, message, EnvelopeType.HOSTS, {"online": online}, result={"hosts": hosts})]


async def _handle_ping(hall: CommandContext, caller: SocketCaller, message: ClientMessage) -> list[Envelope]:
    """The edge is there; what was sent along comes back."""
    del caller
    return [reply(hall, message, EnvelopeType.PONG, message.payload)]


_COMMANDS_BY_TASK_TYPE: Mapping[str, Command] = {DELETE_TASK: _handle_delete_asset}

COMMANDS: Mapping[str, Command] = {
    EnvelopeType.SUBMIT: _handle_submit,
    EnvelopeType.QUERY: _handle_query,
    EnvelopeType.CANCEL: _handle_cancel,
    EnvelopeType.HOSTS: _handle_hosts,
    EnvelopeType.PING: _handle_ping,
}
