"""The commands of the gateway: a table from message type to the function that answers it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from msgspec import structs

from edge.core import messages
from edge.core.concurrency import gather_bounded
from edge.core.validation import input_invalid_problem
from edge.facades.gateway.connection import SocketCaller
from edge.facades.gateway.envelopes import HEYGEM_TASK, CommandContext, build_job_payload, error_reply, reply
from edge.http.dependencies import EdgeServices
from edge.http.problems import problem_for_error
from edge.jobs.service import AcceptedSubmission
from edge.jobs.submission import check_job_id
from schemas.asset import DIGEST_SCHEME
from schemas.credentials import Scope
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
from schemas.installation import AuditAction
from schemas.job import JobKey, Submission
from schemas.job_view import JobView
from schemas.problems import FieldError, ProblemError
from schemas.texts import Language

BATCH_JOBS_LIMIT = 1000  # jobs of one message
CONCURRENT_SUBMITS_LIMIT = 16

_SUBMIT_OPTIONS = frozenset(Submission.__struct_fields__) - {"endpoint", "input", "await_input"}
_RESERVED_FIELDS = frozenset({"code", "jobs", "await_input"})  # never part of an endpoint's input


class SubmittedJob(NamedTuple):
    """A job that was accepted now or by an earlier equal request."""

    view: JobView
    payload: JobPayload
    trace_id: str


def resolve_endpoint(context: CommandContext, task_type: str) -> Endpoint:
    """Return the endpoint that a `task_type` stands for. Raises ProblemError `endpoint_unknown`."""
    name = context.heygem_endpoint if task_type == HEYGEM_TASK else task_type
    return context.services.endpoints.get(name)


def build_submit_body(endpoint: Endpoint, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of a submit. `payload` has options and input side by side, or the input in an object `input`.

    A field of the endpoint's own input is input, even if an option has the same name.
    """
    fields = endpoint.input.get("properties") or {}
    rest = {name: value for name, value in payload.items() if name not in _RESERVED_FIELDS}
    if isinstance(rest.get("input"), dict) and "input" not in fields:
        job_input = rest.pop("input")
        options = rest
    else:
        options = {name: rest.pop(name) for name in _SUBMIT_OPTIONS & rest.keys() - fields.keys()}
        job_input = rest
    options.pop("endpoint", None)
    return {"endpoint": endpoint.name, "input": job_input, **options, "await_input": True}


async def submit_jobs(context: CommandContext, caller: SocketCaller, message: ClientMessage) -> list[Envelope]:
    """Submit the jobs of the message. Reply `ack`, or `gpu.power.offline` while no host of the endpoint is online."""
    caller.require_scope(Scope.JOBS_WRITE)
    jobs = message.payload.get("jobs")
    if jobs is not None:
        return [await _submit_batch(context, caller, message, jobs)]
    submitted = await _submit_one(context, caller, message, message.payload, message.request_id)
    online = context.services.hosts.has_online_host(submitted.view.endpoint)
    payload = submitted.payload if online else _offline_payload(context.services, submitted, caller.language)
    kind = EnvelopeType.ACK if online else EnvelopeType.OFFLINE
    return [reply(context, message, kind, payload, result=submitted.view, trace_id=submitted.trace_id)]


async def _submit_one(
    context: CommandContext, caller: SocketCaller, message: ClientMessage, payload: Mapping[str, Any], name: str
) -> SubmittedJob:
    """Submit one job. `name`: the idempotency key, so that a repeated request is the same job. Raises ProblemError."""
    services = context.services
    code = payload.get("code")
    if code is not None and not isinstance(code, str):
        raise input_invalid_problem(FieldError("$.payload.code", "must be a string: it is the job's id"))
    task = payload.get("endpoint") if not message.task_type else message.task_type
    if not isinstance(task, str) or not task:
        raise input_invalid_problem(
            FieldError("$.task_type", "is missing: send the name of an endpoint, or heygem_submit")
        )
    body = build_submit_body(resolve_endpoint(context, task), payload)
    accepted = await _accept(services, caller.owner, body, code, name, message)
    job = accepted.entry.record.job
    context.submit_metadata.store(job)
    view = await services.job_views.build(accepted.entry, caller.asker)
    return SubmittedJob(view, build_job_payload(context, view), job.trace_id)


async def _accept(  # noqa: PLR0913, PLR0917 - each is one fact of the request
    services: EdgeServices, owner: str, body: dict[str, Any], code: str | None, name: str, message: ClientMessage
) -> AcceptedSubmission:
    """Create the job, or return the existing one. A job of the same code may come from another facade."""
    about = {"trace_id": message.trace_id, "request_id": message.request_id}
    if code is not None:
        return await services.jobs.submit_equivalent(JobKey(owner, code), body, **about)
    return await services.jobs.submit(owner, body, idempotency_key=name or None, **about)


def _offline_payload(services: EdgeServices, submitted: SubmittedJob, language: Language) -> JobPayload:
    """Return the payload with the message that the host is off, whatever else the job waits for."""
    text = messages.format_host_off(language, services.wait_reasons.usual_wake_s(submitted.view.endpoint))
    return structs.replace(submitted.payload, message=text)


async def _submit_batch(context: CommandContext, caller: SocketCaller, message: ClientMessage, jobs: Any) -> Envelope:
    """Submit all jobs. Return one reply with the accepted jobs, in order, and the rejected ones."""
    if not isinstance(jobs, list) or not 1 <= len(jobs) <= BATCH_JOBS_LIMIT:
        raise input_invalid_problem(FieldError("$.payload.jobs", f"must be a list of 1 to {BATCH_JOBS_LIMIT} jobs"))
    calls = [
        partial(_submit_or_problem, context, caller, message, payload, index) for index, payload in enumerate(jobs)
    ]
    return _batch_reply(context, caller, message, await gather_bounded(calls, CONCURRENT_SUBMITS_LIMIT))


async def _submit_or_problem(
    context: CommandContext, caller: SocketCaller, message: ClientMessage, payload: Any, index: int
) -> SubmittedJob | ProblemError:
    if not isinstance(payload, dict):
        return input_invalid_problem(FieldError(f"$.payload.jobs[{index}]", "must be an object"))
    name = f"{message.request_id}[{index}]" if message.request_id else ""
    try:
        return await _submit_one(context, caller, message, payload, name)
    except Exception as error:  # an error of one job must not hide the accepted ones
        return problem_for_error(error)


def _batch_reply(
    context: CommandContext,
    caller: SocketCaller,
    message: ClientMessage,
    results: Sequence[SubmittedJob | ProblemError],
) -> Envelope:
    problems = [(index, one) for index, one in enumerate(results) if isinstance(one, ProblemError)]
    accepted = [one for one in results if isinstance(one, SubmittedJob)]
    rejected = tuple(
        RejectedJobPayload(index=index, problem=messages.localize_problem(one.problem, caller.language))
        for index, one in problems
    )
    if not accepted:
        envelope = error_reply(context, problems[0][1], message, caller.language)
        return structs.replace(envelope, payload={"jobs": (), "rejected": rejected})
    off = [one for one in accepted if not context.services.hosts.has_online_host(one.view.endpoint)]
    jobs = tuple(
        _offline_payload(context.services, one, caller.language) if one in off else one.payload for one in accepted
    )
    first = {name: getattr(jobs[0], name) for name in BatchPayload.__struct_fields__ if hasattr(jobs[0], name)}
    payload = BatchPayload(**first, jobs=jobs, rejected=rejected)
    kind = EnvelopeType.OFFLINE if off else EnvelopeType.ACK
    return reply(context, message, kind, payload, result={"jobs": [one.view for one in accepted]})


Command = Callable[[CommandContext, SocketCaller, ClientMessage], Awaitable[list[Envelope]]]

DELETE_TASK = "delete_asset"


async def _handle_submit(context: CommandContext, caller: SocketCaller, message: ClientMessage) -> list[Envelope]:
    """Submit jobs, or run the command that the `task_type` names."""
    command = _COMMANDS_BY_TASK_TYPE.get(message.task_type, submit_jobs)
    return await command(context, caller, message)


async def _handle_delete_asset(context: CommandContext, caller: SocketCaller, message: ClientMessage) -> list[Envelope]:
    """Delete an asset. Hosts drop it from their caches before they next take work; no host is woken for it."""
    caller.require_scope(Scope.ASSETS_WRITE)
    sha256 = message.payload.get("sha256")
    if not isinstance(sha256, str):
        raise input_invalid_problem(FieldError("$.payload.sha256", "is missing: send the sha256 of the asset"))
    try:
        deleted = await context.services.assets.delete(caller.owner, sha256.removeprefix(DIGEST_SCHEME).lower())
    except ProblemError as error:
        if error.code != "not_found":
            raise
        return [_asset_not_found_reply(context, caller, message, sha256)]
    await caller.record(context.services, AuditAction.ASSET_DELETED, deleted.sha256)
    text = messages.DELETED_TEXT.render(caller.language)
    result = {"sha256": deleted.sha256, "hosts_pending": deleted.hosts_pending, "message": text}
    return [
        reply(context, message, EnvelopeType.RESULT, DeletedPayload(sha256=deleted.sha256, message=text), result=result)
    ]


def _asset_not_found_reply(
    context: CommandContext, caller: SocketCaller, message: ClientMessage, sha256: str
) -> Envelope:
    """Return the vendor's reply for a missing asset. Clients compare its text."""
    text = messages.DELETE_FAILED_TEXT.render(caller.language)
    error = {"code": "not_found", "message": text}
    payload = DeletedPayload(sha256=sha256, message=text)
    return reply(context, message, EnvelopeType.RESULT, payload, error=True, error_msg=text, result={"error": error})


def _parse_job_key(caller: SocketCaller, message: ClientMessage) -> JobKey:
    job_id = message.payload.get("job_id") or message.payload.get("code")
    return JobKey(caller.owner, check_job_id(job_id, "$.payload.job_id"))


async def _handle_query(context: CommandContext, caller: SocketCaller, message: ClientMessage) -> list[Envelope]:
    """Reply with the state of a job."""
    caller.require_scope(Scope.JOBS_READ)
    entry = await context.services.jobs.read(_parse_job_key(caller, message))
    view = await context.services.job_views.build(entry, caller.asker)
    return [reply(context, message, EnvelopeType.STATUS, build_job_payload(context, view), result=view)]


async def _handle_cancel(context: CommandContext, caller: SocketCaller, message: ClientMessage) -> list[Envelope]:
    """Cancel a job, waiting or running."""
    caller.require_scope(Scope.JOBS_WRITE)
    key = _parse_job_key(caller, message)
    entry = await context.services.jobs.cancel(key)
    if caller.key.owner != caller.owner:
        await caller.record(context.services, AuditAction.JOB_CANCELLED, key.id)
    view = await context.services.job_views.build(entry, caller.asker)
    return [reply(context, message, EnvelopeType.STATUS, build_job_payload(context, view), result=view)]


async def _handle_hosts(context: CommandContext, caller: SocketCaller, message: ClientMessage) -> list[Envelope]:
    """Reply with every known host and the jobs of the caller's owner on it."""
    caller.require_scope(Scope.HOSTS_READ)
    hosts = context.services.power.host_views(context.services.hosts.views(caller.owner))
    online = any(host.state == "online" for host in hosts)
    return [reply(context, message, EnvelopeType.HOSTS, {"online": online}, result={"hosts": hosts})]


async def _handle_ping(context: CommandContext, caller: SocketCaller, message: ClientMessage) -> list[Envelope]:
    """Reply with the payload of the ping."""
    del caller
    return [reply(context, message, EnvelopeType.PONG, message.payload)]


_COMMANDS_BY_TASK_TYPE: Mapping[str, Command] = {DELETE_TASK: _handle_delete_asset}

COMMANDS: Mapping[str, Command] = {
    EnvelopeType.SUBMIT: _handle_submit,
    EnvelopeType.QUERY: _handle_query,
    EnvelopeType.CANCEL: _handle_cancel,
    EnvelopeType.HOSTS: _handle_hosts,
    EnvelopeType.PING: _handle_ping,
}
