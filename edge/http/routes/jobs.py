"""`/v1/jobs`: submit, read, list, cancel, retry, delete, and what a job left behind."""

import re
from contextlib import aclosing
from typing import Annotated, Any

import anyio
from litestar import MediaType, Response, delete, post, put
from litestar.params import FromPath, FromQuery, HeaderParameter, QueryParameter
from litestar.types import ASGIApp
from msgspec import Meta, Struct

from bus.interface import VersionedRecord
from edge.core.error_handling import translate_errors
from edge.http.auth import require_scope
from edge.http.dependencies import AnyRequest, Asking, EdgeServices, OwnerDep, ServicesDep, get_or_head, parse_job_key
from edge.http.openapi import JobBody, json_body
from edge.http.request_body import read_struct, read_submission
from edge.http.responses import file_response, text_response
from edge.index.paging import JobFilters
from edge.jobs.service import BATCH_LIMIT, AcceptedSubmission, RejectedSubmission, submit_batch
from edge.jobs.view import Asker
from schemas.auth import Scope
from schemas.feed import LogMessage
from schemas.ids import JobKey
from schemas.job import Submission
from schemas.job_view import HistoryRow, JobView
from schemas.problems import FieldError, ProblemError
from schemas.status import FINAL_STATUSES, Priority, Status

WAIT_LIMIT_S = 60.0
_PREFER_WAIT = re.compile(r"\bwait=(\d+)")


async def _accepted_response(
    parts: EdgeServices, accepted: AcceptedSubmission, asker: Asker, status: int
) -> Response[JobView]:
    view = await parts.job_views.build(accepted.record, asker)
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
    parts: ServicesDep,
    owner: OwnerDep,
    asker: Asking,
    idempotency_key: Annotated[str | None, HeaderParameter(name="Idempotency-Key", max_length=255)] = None,
    prefer: Annotated[str | None, HeaderParameter(name="Prefer")] = None,
) -> Response[JobView]:
    """Accept a job durably. The same `Idempotency-Key` and body answer the same job.

    `Prefer: wait=S` holds the answer until the job is final, at most 60 s; it is 202 all the same.
    """
    body = await read_submission(request, parts, owner)
    accepted = await parts.jobs.submit(
        owner, body, idempotency_key=idempotency_key, trace_id=request.headers.get("x-trace-id")
    )
    accepted = await _wait_as_preferred(parts, accepted, prefer)
    return await _accepted_response(parts, accepted, asker, 202)


@put(
    "/v1/jobs/{job_id:str}",
    status_code=202,
    guards=[require_scope(Scope.JOBS_WRITE)],
    operation_class=JobBody,
    request_max_body_size=None,
)
async def put_job(
    request: AnyRequest,
    parts: ServicesDep,
    owner: OwnerDep,
    asker: Asking,
    job_id: FromPath[str],
    prefer: Annotated[str | None, HeaderParameter(name="Prefer")] = None,
) -> Response[JobView]:
    """Accept a job under the client's id: 202 when new, 200 when there and equal, 409 when there and different.

    `Prefer: wait=S` holds the answer as it does for `POST /v1/jobs`.
    """
    key = parse_job_key(owner, job_id)
    body = await read_submission(request, parts, owner)
    accepted = await parts.jobs.submit(owner, body, job_id=key.id, trace_id=request.headers.get("x-trace-id"))
    accepted = await _wait_as_preferred(parts, accepted, prefer)
    return await _accepted_response(parts, accepted, asker, 200 if accepted.replayed else 202)


def _seconds_to_wait(asked: float | None, prefer: str | None) -> float:
    match = _PREFER_WAIT.search(prefer or "")
    return min(WAIT_LIMIT_S, max(0.0, asked if asked is not None else float(match[1]) if match else 0.0))


async def _wait_as_preferred(
    parts: EdgeServices, accepted: AcceptedSubmission, prefer: str | None
) -> AcceptedSubmission:
    """The same, once its job is final or what `Prefer` grants has passed."""
    seconds = _seconds_to_wait(None, prefer)
    if not seconds or accepted.record.record.job.status in FINAL_STATUSES:
        return accepted
    return AcceptedSubmission(await wait_until_final(parts, accepted.record, seconds), accepted.replayed)


async def wait_until_final(parts: EdgeServices, entry: VersionedRecord, wait_s: float) -> VersionedRecord:
    """The entry once its job is final, or as it is after `wait_s`."""
    key = entry.record.job.key
    with translate_errors(), anyio.move_on_after(wait_s):
        now = await parts.bus.feed.last_id()
        async with aclosing(parts.event_streams.follow(key.owner, key.id, now)) as events:
            async for event in events:
                if isinstance(event.data, JobView) and event.data.status in FINAL_STATUSES:
                    break
    return await parts.jobs.read(key)


async def _read_log_so_far(parts: EdgeServices, key: JobKey) -> str:
    """What the log of a job that has not ended holds."""
    with translate_errors():
        notes = await parts.bus.feed.messages(key)
    return "".join(note.text for note in notes if isinstance(note, LogMessage))


@get_or_head("/v1/jobs/{job_id:str}", guards=[require_scope(Scope.JOBS_READ)])
async def read_job(
    parts: ServicesDep,
    owner: OwnerDep,
    asker: Asking,
    job_id: FromPath[str],
    wait: Annotated[float | None, QueryParameter(ge=0, le=WAIT_LIMIT_S)] = None,
    prefer: Annotated[str | None, HeaderParameter(name="Prefer")] = None,
) -> JobView:
    """The job; `?wait=S` or `Prefer: wait=S` holds the answer until it is final, at most 60 s."""
    entry = await parts.jobs.read(parse_job_key(owner, job_id))
    seconds = _seconds_to_wait(wait, prefer)
    if seconds and entry.record.job.status not in FINAL_STATUSES:
        entry = await wait_until_final(parts, entry, seconds)
    return await parts.job_views.build(entry, asker)


@get_or_head("/v1/jobs/{job_id:str}/history", guards=[require_scope(Scope.JOBS_READ)])
async def job_history(parts: ServicesDep, owner: OwnerDep, job_id: FromPath[str]) -> list[HistoryRow]:
    """The last 64 events of the job, oldest first."""
    return await parts.jobs.read_history(parse_job_key(owner, job_id))


@post("/v1/jobs/{job_id:str}/cancel", status_code=202, guards=[require_scope(Scope.JOBS_WRITE)])
async def cancel_job(parts: ServicesDep, owner: OwnerDep, asker: Asking, job_id: FromPath[str]) -> JobView:
    """Stop the job, waiting or running; 409 `job_final` when it has ended."""
    return await parts.job_views.build(await parts.jobs.cancel(parse_job_key(owner, job_id)), asker)


@post("/v1/jobs/{job_id:str}/retry", status_code=202, guards=[require_scope(Scope.JOBS_WRITE)])
async def retry_job(parts: ServicesDep, owner: OwnerDep, asker: Asking, job_id: FromPath[str]) -> JobView:
    """A new round with the same id and inputs, from failed, cancelled or expired."""
    return await parts.job_views.build(await parts.jobs.retry(parse_job_key(owner, job_id)), asker)


@delete("/v1/jobs/{job_id:str}", status_code=204, guards=[require_scope(Scope.JOBS_WRITE)])
async def delete_job(parts: ServicesDep, owner: OwnerDep, job_id: FromPath[str]) -> None:
    """Remove a job that has ended: record, outputs, log and feed."""
    await parts.jobs.delete(parse_job_key(owner, job_id))


@get_or_head("/v1/jobs/{job_id:str}/logs", guards=[require_scope(Scope.JOBS_READ)], media_type=MediaType.TEXT)
async def job_logs(request: AnyRequest, parts: ServicesDep, owner: OwnerDep, job_id: FromPath[str]) -> ASGIApp:
    """The log as text: the kept one (first and last 5 MB) once the job has ended, until then what was said so far."""
    entry = await parts.jobs.read(parse_job_key(owner, job_id))
    kept = entry.record.job.log
    if kept is not None:
        return await file_response(request, parts, kept, f"{job_id}.log", "text/plain; charset=utf-8")
    return text_response(await _read_log_so_far(parts, entry.record.job.key))


@get_or_head(
    "/v1/jobs/{job_id:str}/files/{name:str}",
    guards=[require_scope(Scope.JOBS_READ)],
    media_type="application/octet-stream",
)
async def job_file(
    request: AnyRequest, parts: ServicesDep, owner: OwnerDep, job_id: FromPath[str], name: FromPath[str]
) -> ASGIApp:
    """One output, with Range and ETag."""
    job = (await parts.jobs.read(parse_job_key(owner, job_id))).record.job
    file = next((file for file in (job.output.files if job.output else ()) if file.name == name), None)
    if file is None:
        raise ProblemError(
            "not_found", f"the job has no output named {name[:100]!r}: its files are listed in output.files"
        )
    return await file_response(request, parts, file.sha256, file.name, file.media_type)


# MERGED edge/routes/lists.py: `GET /v1/jobs`: the owner's jobs, newest first, out of the index.


class JobPageView(Struct, frozen=True):
    """One page of jobs; `next_cursor` null on the last."""

    jobs: list[JobView]
    next_cursor: str | None = None


def _parse_tags(given: list[str] | None) -> tuple[tuple[str, str], ...]:
    """`["k:v"]` as pairs. Refused input_invalid."""
    tags = []
    for text in given or ():
        name, colon, value = text.partition(":")
        if not colon or not name:
            raise ProblemError(
                "input_invalid", "?tag= is name:value", errors=(FieldError("$.tag", f"{text[:80]!r} has no colon"),)
            )
        tags.append((name, value))
    return tuple(tags)


@get_or_head("/v1/jobs", guards=[require_scope(Scope.JOBS_READ)])
async def list_jobs(
    parts: ServicesDep,
    owner: OwnerDep,
    asker: Asking,
    status: FromQuery[Status | None] = None,
    endpoint: Annotated[str | None, QueryParameter(max_length=64)] = None,
    priority: FromQuery[Priority | None] = None,
    tag: FromQuery[list[str] | None] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=500)] = 50,
    cursor: Annotated[str | None, QueryParameter(max_length=200)] = None,
) -> JobPageView:
    """The owner's jobs, newest first. Waits until the list holds what this edge wrote before."""
    filters = JobFilters(status=status, endpoint=endpoint, priority=priority, tags=_parse_tags(tag))
    page = await parts.index.list_jobs(owner, filters, limit, cursor)
    return JobPageView(await parts.job_views.build_page(page.records, asker), page.next_cursor)


# MERGED edge/routes/batches.py: `/v1/batches`: up to a thousand submits in one request.


class BatchBody(Struct, frozen=True, forbid_unknown_fields=True):
    """The body as clients should send it."""

    jobs: Annotated[list[Submission], Meta(min_length=1, max_length=BATCH_LIMIT)]


class _Bodies(Struct, frozen=True, forbid_unknown_fields=True):
    jobs: list[Any]  # each is judged by itself


class BatchView(Struct, frozen=True):
    """What became of a batch. `rejected[].index` counts from 0 in the request."""

    accepted: list[JobView]
    rejected: list[RejectedSubmission]


@post("/v1/batches", status_code=202, guards=[require_scope(Scope.JOBS_WRITE)], operation_class=json_body(BatchBody))
async def submit_jobs(
    request: AnyRequest,
    parts: ServicesDep,
    owner: OwnerDep,
    asker: Asking,
    idempotency_key: Annotated[str | None, HeaderParameter(name="Idempotency-Key", max_length=255)] = None,
) -> BatchView:
    """Accept up to 1000 jobs, each durably and by itself: what is wrong with one rejects no other."""
    asked = await read_struct(request, _Bodies)
    batch = await submit_batch(
        parts.jobs, owner, asked.jobs, idempotency_key=idempotency_key, trace_id=request.headers.get("x-trace-id")
    )
    views = await parts.job_views.build_page([accepted.record for accepted in batch.accepted], asker)
    return BatchView(views, list(batch.rejected))


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
)
