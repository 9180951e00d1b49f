"""`/v1/jobs` and `/v1/batches`: submit, read, list, cancel, retry and delete jobs, one or many; logs and files."""

import re
from datetime import datetime
from typing import Annotated, Any

from litestar import MediaType, Response, delete, post, put
from litestar.params import FromPath, FromQuery, HeaderParameter, QueryParameter
from litestar.types import ASGIApp
from msgspec import Meta, Struct, structs

from edge.core.concurrency import translate_errors
from edge.core.messages import localize_problem
from edge.http.auth import require_scope
from edge.http.dependencies import (
    AnyRequest,
    AskerDep,
    EdgeServices,
    OwnerDep,
    ServicesDep,
    get_or_head,
    parse_job_key,
    read_when_final,
    record_action_for_other_owner,
    record_audit_event,
)
from edge.http.openapi import JobBody, json_body
from edge.http.request_input import read_struct, read_submission
from edge.http.responses import file_response, text_response
from edge.index.rows import JobFilters
from edge.jobs.service import BATCH_LIMIT, AcceptedSubmission, RejectedSubmission, submit_batch
from edge.jobs.view import Asker
from schemas.credentials import Scope
from schemas.events import LogMessage
from schemas.installation import (
    ACTION_JOBS_LIMIT,
    AuditAction,
    JobAction,
    JobActionCounts,
    JobActionFailure,
    JobActionFilter,
    JobActionKind,
    JobActionState,
)
from schemas.job import FINAL_STATUSES, JobKey, Moment, Priority, Status, Submission, Token, is_token
from schemas.job_view import HistoryRow, JobView
from schemas.problems import FieldError, ProblemError

WAIT_LIMIT_S = 60.0
_PREFER_WAIT = re.compile(r"\bwait=(\d+)")


async def _accepted_response(
    services: EdgeServices, accepted: AcceptedSubmission, asker: Asker, status: int
) -> Response[JobView]:
    view = await services.job_views.build(accepted.entry, asker)
    headers = {"Location": view.urls.self}
    if accepted.replayed:
        headers["Idempotent-Replayed"] = "true"
    return Response(view, status_code=status, headers=headers)


@post(
    "/v1/jobs",
    status_code=202,
    guards=[require_scope(Scope.JOBS_WRITE)],
    operation_class=JobBody,
    request_max_body_size=None,
)
async def submit_job(
    request: AnyRequest,
    services: ServicesDep,
    owner: OwnerDep,
    asker: AskerDep,
    idempotency_key: Annotated[str | None, HeaderParameter(name="Idempotency-Key", max_length=255)] = None,
    prefer: Annotated[str | None, HeaderParameter(name="Prefer")] = None,
) -> Response[JobView]:
    """Submit a job. The response is sent after the job is stored durably.

    A repeated request with the same `Idempotency-Key` and body returns the same job. `Prefer: wait=S` delays the
    response until the job has ended, for at most 60 s; the status is 202 in both cases.
    """
    body = await read_submission(request, services, owner)
    accepted = await services.jobs.submit(
        owner, body, idempotency_key=idempotency_key, trace_id=request.headers.get("x-trace-id")
    )
    accepted = await _wait_as_preferred(services, accepted, prefer)
    return await _accepted_response(services, accepted, asker, 202)


@put(
    "/v1/jobs/{job_id:str}",
    status_code=202,
    guards=[require_scope(Scope.JOBS_WRITE)],
    operation_class=JobBody,
    request_max_body_size=None,
)
async def put_job(
    request: AnyRequest,
    services: ServicesDep,
    owner: OwnerDep,
    asker: AskerDep,
    job_id: FromPath[str],
    prefer: Annotated[str | None, HeaderParameter(name="Prefer")] = None,
) -> Response[JobView]:
    """Submit a job with an id that the client chooses.

    The status is 202 for a new job, 200 if an equal job with this id exists, and 409 if a different one exists.
    `Prefer: wait=S` works as for `POST /v1/jobs`.
    """
    key = parse_job_key(owner, job_id)
    body = await read_submission(request, services, owner)
    accepted = await services.jobs.submit(owner, body, job_id=key.id, trace_id=request.headers.get("x-trace-id"))
    accepted = await _wait_as_preferred(services, accepted, prefer)
    return await _accepted_response(services, accepted, asker, 200 if accepted.replayed else 202)


def _seconds_to_wait(wait: float | None, prefer: str | None) -> float:
    match = _PREFER_WAIT.search(prefer or "")
    return min(WAIT_LIMIT_S, max(0.0, wait if wait is not None else float(match[1]) if match else 0.0))


async def _wait_as_preferred(
    services: EdgeServices, accepted: AcceptedSubmission, prefer: str | None
) -> AcceptedSubmission:
    """Return the submission after its job has ended, or after the time in `Prefer`."""
    seconds = _seconds_to_wait(None, prefer)
    if not seconds or accepted.entry.record.job.status in FINAL_STATUSES:
        return accepted
    return AcceptedSubmission(await read_when_final(services, accepted.entry, seconds), accepted.replayed)


async def _read_log_so_far(services: EdgeServices, key: JobKey) -> str:
    """Return the log of a job that has not ended."""
    with translate_errors():
        messages = await services.bus.feed.messages(key)
    return "".join(message.text for message in messages if isinstance(message, LogMessage))


@get_or_head("/v1/jobs/{job_id:str}", guards=[require_scope(Scope.JOBS_READ)])
async def read_job(
    services: ServicesDep,
    owner: OwnerDep,
    asker: AskerDep,
    job_id: FromPath[str],
    wait: Annotated[float | None, QueryParameter(ge=0, le=WAIT_LIMIT_S)] = None,
    prefer: Annotated[str | None, HeaderParameter(name="Prefer")] = None,
) -> JobView:
    """Return a job. `?wait=S` or `Prefer: wait=S` delays the response until the job has ended, for at most 60 s."""
    entry = await services.jobs.read(parse_job_key(owner, job_id))
    seconds = _seconds_to_wait(wait, prefer)
    if seconds and entry.record.job.status not in FINAL_STATUSES:
        entry = await read_when_final(services, entry, seconds)
    return await services.job_views.build(entry, asker)


@get_or_head("/v1/jobs/{job_id:str}/history", guards=[require_scope(Scope.JOBS_READ)])
async def job_history(services: ServicesDep, owner: OwnerDep, job_id: FromPath[str]) -> list[HistoryRow]:
    """Return the last 64 events of a job, oldest first."""
    return await services.jobs.read_history(parse_job_key(owner, job_id))


@post("/v1/jobs/{job_id:str}/cancel", status_code=202, guards=[require_scope(Scope.JOBS_WRITE)])
async def cancel_job(
    request: AnyRequest, services: ServicesDep, owner: OwnerDep, asker: AskerDep, job_id: FromPath[str]
) -> JobView:
    """Cancel a job, waiting or running. 409 `job_final` if it has ended."""
    key = parse_job_key(owner, job_id)
    entry = await services.jobs.cancel(key)
    await record_action_for_other_owner(request, services, AuditAction.JOB_CANCELLED, key)
    return await services.job_views.build(entry, asker)


@post("/v1/jobs/{job_id:str}/retry", status_code=202, guards=[require_scope(Scope.JOBS_WRITE)])
async def retry_job(
    request: AnyRequest, services: ServicesDep, owner: OwnerDep, asker: AskerDep, job_id: FromPath[str]
) -> JobView:
    """Run a failed, cancelled or expired job again, with the same id and inputs."""
    key = parse_job_key(owner, job_id)
    entry = await services.jobs.retry(key)
    await record_action_for_other_owner(request, services, AuditAction.JOB_RETRIED, key)
    return await services.job_views.build(entry, asker)


@delete("/v1/jobs/{job_id:str}", status_code=204, guards=[require_scope(Scope.JOBS_WRITE)])
async def delete_job(request: AnyRequest, services: ServicesDep, owner: OwnerDep, job_id: FromPath[str]) -> None:
    """Delete a job that has ended, with its record, outputs, log and events."""
    await services.jobs.delete(parse_job_key(owner, job_id))
    await record_audit_event(request, services, AuditAction.JOB_DELETED, job_id, owner=owner)


@get_or_head("/v1/jobs/{job_id:str}/logs", guards=[require_scope(Scope.JOBS_READ)], media_type=MediaType.TEXT)
async def job_logs(request: AnyRequest, services: ServicesDep, owner: OwnerDep, job_id: FromPath[str]) -> ASGIApp:
    """Return the log of a job as text: the log so far, or its first and last 5 MB once the job has ended."""
    entry = await services.jobs.read(parse_job_key(owner, job_id))
    stored_log = entry.record.job.log
    if stored_log is not None:
        return await file_response(request, services, stored_log, f"{job_id}.log", "text/plain; charset=utf-8")
    return text_response(await _read_log_so_far(services, entry.record.job.key))


@get_or_head(
    "/v1/jobs/{job_id:str}/files/{name:str}",
    guards=[require_scope(Scope.JOBS_READ)],
    media_type="application/octet-stream",
)
async def job_file(
    request: AnyRequest, services: ServicesDep, owner: OwnerDep, job_id: FromPath[str], name: FromPath[str]
) -> ASGIApp:
    """Return one output file. Supports Range and If-None-Match."""
    job = (await services.jobs.read(parse_job_key(owner, job_id))).record.job
    file = next((file for file in (job.output.files if job.output else ()) if file.name == name), None)
    if file is None:
        raise ProblemError("not_found", f"the job has no output named {name[:100]!r}: output.files lists its files")
    return await file_response(request, services, file.sha256, file.name, file.media_type)


class JobPageView(Struct, frozen=True):
    """One page of jobs. `next_cursor` is null on the last page."""

    jobs: list[JobView]
    next_cursor: str | None = None


def _parse_tags(texts: list[str] | None) -> tuple[tuple[str, str], ...]:
    """Return `["k:v"]` as pairs. Raises ProblemError `input_invalid`."""
    tags = []
    for text in texts or ():
        name, colon, value = text.partition(":")
        if not colon or not name:
            raise ProblemError(
                "input_invalid",
                "?tag= must be name:value",
                errors=(FieldError("$.tag", f"{text[:80]!r} has no colon"),),
            )
        tags.append((name, value))
    return tuple(tags)


@get_or_head("/v1/jobs", guards=[require_scope(Scope.JOBS_READ)])
async def list_jobs(
    services: ServicesDep,
    owner: OwnerDep,
    asker: AskerDep,
    status: FromQuery[list[Status] | None] = None,
    endpoint: Annotated[str | None, QueryParameter(max_length=64)] = None,
    priority: FromQuery[Priority | None] = None,
    tag: FromQuery[list[str] | None] = None,
    code: Annotated[str | None, QueryParameter(max_length=64)] = None,
    text: Annotated[str | None, QueryParameter(max_length=200)] = None,
    created_from: Annotated[datetime | None, QueryParameter(name="from")] = None,
    created_to: Annotated[datetime | None, QueryParameter(name="to")] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=500)] = 50,
    cursor: Annotated[str | None, QueryParameter(max_length=200)] = None,
) -> JobPageView:
    """List the owner's jobs, newest first. The list includes every earlier write through this edge.

    `status` may be repeated. `code` is that of the failure. `text` occurs in the id, the input, a tag or the error
    message. `from` and `to` limit the time of the submit.
    """
    filters = JobFilters(
        statuses=tuple(status or ()),
        endpoint=endpoint,
        priority=priority,
        tags=_parse_tags(tag),
        code=code,
        text=text,
        created_from=created_from,
        created_to=created_to,
    )
    page = await services.index.list_jobs(owner, filters, limit, cursor)
    return JobPageView(await services.job_views.build_page(page.records, asker), page.next_cursor)


class BatchBody(Struct, frozen=True, forbid_unknown_fields=True):
    """A batch of at most 1000 jobs to submit."""

    jobs: Annotated[list[Submission], Meta(min_length=1, max_length=BATCH_LIMIT)]


class _Bodies(Struct, frozen=True, forbid_unknown_fields=True):
    jobs: list[Any]  # each job is validated on its own


class BatchView(Struct, frozen=True):
    """The result of a batch. `rejected[].index` is the position in the request, from 0."""

    accepted: list[JobView]
    rejected: list[RejectedSubmission]


@post("/v1/batches", status_code=202, guards=[require_scope(Scope.JOBS_WRITE)], operation_class=json_body(BatchBody))
async def submit_jobs(
    request: AnyRequest,
    services: ServicesDep,
    owner: OwnerDep,
    asker: AskerDep,
    idempotency_key: Annotated[str | None, HeaderParameter(name="Idempotency-Key", max_length=255)] = None,
) -> BatchView:
    """Submit up to 1000 jobs. Each is accepted or rejected on its own, and accepted jobs are stored durably."""
    body = await read_struct(request, _Bodies)
    batch = await submit_batch(
        services.jobs, owner, body.jobs, idempotency_key=idempotency_key, trace_id=request.headers.get("x-trace-id")
    )
    views = await services.job_views.build_page([accepted.entry for accepted in batch.accepted], asker)
    rejected = [structs.replace(one, problem=localize_problem(one.problem, asker.language)) for one in batch.rejected]
    return BatchView(views, rejected)


class JobActionRequestFilter(JobActionFilter, frozen=True, forbid_unknown_fields=True):
    """The jobs that an action is for, by the conditions of `GET /v1/jobs`. Empty: every job of the owner."""


class JobActionRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """An action on many jobs: on those with `ids`, or on those that match `filter` at the time of the request."""

    action: JobActionKind
    ids: Annotated[tuple[Token, ...], Meta(max_length=ACTION_JOBS_LIMIT)] = ()
    filter: JobActionRequestFilter | None = None


class JobActionView(Struct, frozen=True, kw_only=True):
    """An action and its progress.

    `total`: the jobs that were found at the request. `done`: changed. `skipped`: nothing to change. `failures`: the
    first 100 of the `failed` jobs. `waits_for`: why it does not go on at the moment.
    """

    id: str
    action: JobActionKind
    state: JobActionState
    total: int
    done: int
    skipped: int
    failed: int
    failures: tuple[JobActionFailure, ...]
    waits_for: str | None
    requested_at: Moment
    finished_at: Moment | None


class JobActionListView(Struct, frozen=True):
    """The actions of the owner, newest first."""

    actions: list[JobActionView]


def _to_action_view(action: JobAction) -> JobActionView:
    counts: JobActionCounts = action.counts
    return JobActionView(
        id=action.id,
        action=action.kind,
        state=action.state,
        total=action.total,
        done=counts.done,
        skipped=counts.skipped,
        failed=counts.failed,
        failures=action.failures,
        waits_for=action.waits_for,
        requested_at=action.requested_at,
        finished_at=action.finished_at,
    )


@post(
    "/v1/jobs/actions",
    status_code=202,
    guards=[require_scope(Scope.JOBS_WRITE)],
    operation_class=json_body(JobActionRequest),
)
async def start_job_action(request: AnyRequest, services: ServicesDep, owner: OwnerDep) -> Response[JobActionView]:
    """Cancel, retry or delete many jobs. The action is durable: it goes on after a restart of the edge."""
    body = await read_struct(request, JobActionRequest)
    services.quotas.check_not_deleting(owner)
    action = await services.job_actions.start(
        owner, body.action, request.auth.id, ids=body.ids, jobs_filter=body.filter
    )
    details = {"action": action.kind, "total": str(action.total), "conditions": " ".join(action.conditions)}
    await record_audit_event(request, services, AuditAction.JOB_ACTION_STARTED, action.id, owner=owner, details=details)
    return Response(_to_action_view(action), status_code=202, headers={"Location": f"/v1/jobs/actions/{action.id}"})


@get_or_head("/v1/jobs/actions", guards=[require_scope(Scope.JOBS_READ)])
async def list_job_actions(services: ServicesDep, owner: OwnerDep) -> JobActionListView:
    """List the actions of the last 30 days."""
    return JobActionListView([_to_action_view(action) for action in await services.job_actions.list(owner)])


@get_or_head("/v1/jobs/actions/{action_id:str}", guards=[require_scope(Scope.JOBS_READ)])
async def read_job_action(services: ServicesDep, owner: OwnerDep, action_id: FromPath[str]) -> JobActionView:
    """Return an action and its progress."""
    if not is_token(action_id):
        raise ProblemError("not_found", "there is no such action: GET /v1/jobs/actions lists them")
    return _to_action_view(await services.job_actions.read(owner, action_id))


ROUTES = (
    submit_job,
    put_job,
    read_job,
    job_history,
    cancel_job,
    retry_job,
    delete_job,
    job_logs,
    job_file,
    list_jobs,
    submit_jobs,
    start_job_action,
    list_job_actions,
    read_job_action,
)
