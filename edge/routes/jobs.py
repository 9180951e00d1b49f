"""`/v1/jobs`: submit, read, list, cancel, retry, delete, and what a job left behind."""

import re
from contextlib import aclosing
from typing import Annotated

import anyio
from litestar import MediaType, Response, delete, post, put
from litestar.params import FromPath, HeaderParameter, QueryParameter
from litestar.types import ASGIApp

from bus.port import Entry
from edge.auth.keys import needs
from edge.parts import Parts
from edge.routes.bodies import read_submission
from edge.routes.documents import JobBody
from edge.routes.files import download, plain
from edge.routes.given import AnyRequest, Asking, Owner, Services, get_or_head
from edge.services.intake import Accepted
from edge.services.refusals import refusing
from edge.services.view import Asker
from schemas.access import Scope
from schemas.errors import Refused
from schemas.feed import LogNote
from schemas.job import JobKey
from schemas.view import HistoryRow, JobView
from schemas.words import FINAL, is_token

MAX_WAIT_S = 60.0
_PREFER_WAIT = re.compile(r"\bwait=(\d+)")


def job_key(owner: Owner, job_id: str) -> JobKey:
    """The key of a path; Refused input_invalid when the id could be none."""
    if not is_token(job_id):
        raise Refused("input_invalid", "a job id is 1 to 64 of A-Z a-z 0-9 _ -")
    return JobKey(owner, job_id)


async def _accepted(parts: Parts, accepted: Accepted, asker: Asker, status: int) -> Response[JobView]:
    view = await parts.viewer.job(accepted.entry, asker)
    headers = {"Location": view.urls.self}
    if accepted.replayed:
        headers["Idempotent-Replayed"] = "true"
    return Response(view, status_code=status, headers=headers)


@post(
    "/v1/jobs", status_code=202, guards=[needs(Scope.JOBS_WRITE)], operation_class=JobBody, request_max_body_size=None
)
async def submit_job(
    request: AnyRequest,
    parts: Services,
    owner: Owner,
    asker: Asking,
    idempotency_key: Annotated[str | None, HeaderParameter(name="Idempotency-Key", max_length=255)] = None,
    prefer: Annotated[str | None, HeaderParameter(name="Prefer")] = None,
) -> Response[JobView]:
    """Accept a job durably. The same `Idempotency-Key` and body answer the same job.

    `Prefer: wait=S` holds the answer until the job is final, at most 60 s; it is 202 all the same.
    """
    body = await read_submission(request, parts, owner)
    accepted = await parts.intake.submit(
        owner, body, idempotency_key=idempotency_key, trace_id=request.headers.get("x-trace-id")
    )
    accepted = await _held(parts, accepted, prefer)
    return await _accepted(parts, accepted, asker, 202)


@put(
    "/v1/jobs/{job_id:str}",
    status_code=202,
    guards=[needs(Scope.JOBS_WRITE)],
    operation_class=JobBody,
    request_max_body_size=None,
)
async def put_job(
    request: AnyRequest,
    parts: Services,
    owner: Owner,
    asker: Asking,
    job_id: FromPath[str],
    prefer: Annotated[str | None, HeaderParameter(name="Prefer")] = None,
) -> Response[JobView]:
    """Accept a job under the client's id: 202 when new, 200 when there and equal, 409 when there and different.

    `Prefer: wait=S` holds the answer as it does for `POST /v1/jobs`.
    """
    key = job_key(owner, job_id)
    body = await read_submission(request, parts, owner)
    accepted = await parts.intake.submit(owner, body, job_id=key.id, trace_id=request.headers.get("x-trace-id"))
    accepted = await _held(parts, accepted, prefer)
    return await _accepted(parts, accepted, asker, 200 if accepted.replayed else 202)


def _seconds_to_wait(asked: float | None, prefer: str | None) -> float:
    match = _PREFER_WAIT.search(prefer or "")
    return min(MAX_WAIT_S, max(0.0, asked if asked is not None else float(match[1]) if match else 0.0))


async def _held(parts: Parts, accepted: Accepted, prefer: str | None) -> Accepted:
    """The same, once its job is final or what `Prefer` grants has passed."""
    seconds = _seconds_to_wait(None, prefer)
    if not seconds or accepted.entry.recorded.job.status in FINAL:
        return accepted
    return Accepted(await once_final(parts, accepted.entry, seconds), accepted.replayed)


async def once_final(parts: Parts, entry: Entry, wait_s: float) -> Entry:
    """The entry once its job is final, or as it is after `wait_s`."""
    key = entry.recorded.job.key
    with refusing(), anyio.move_on_after(wait_s):
        now = await parts.bus.feed.position()
        async with aclosing(parts.follower.events(key.owner, key.id, now)) as events:
            async for event in events:
                if isinstance(event.data, JobView) and event.data.status in FINAL:
                    break
    return await parts.intake.read(key)


async def _said_so_far(parts: Parts, key: JobKey) -> str:
    """What the log of a job that has not ended holds."""
    with refusing():
        notes = await parts.bus.feed.notes(key)
    return "".join(note.text for note in notes if isinstance(note, LogNote))


@get_or_head("/v1/jobs/{job_id:str}", guards=[needs(Scope.JOBS_READ)])
async def read_job(
    parts: Services,
    owner: Owner,
    asker: Asking,
    job_id: FromPath[str],
    wait: Annotated[float | None, QueryParameter(ge=0, le=MAX_WAIT_S)] = None,
    prefer: Annotated[str | None, HeaderParameter(name="Prefer")] = None,
) -> JobView:
    """The job; `?wait=S` or `Prefer: wait=S` holds the answer until it is final, at most 60 s."""
    entry = await parts.intake.read(job_key(owner, job_id))
    seconds = _seconds_to_wait(wait, prefer)
    if seconds and entry.recorded.job.status not in FINAL:
        entry = await once_final(parts, entry, seconds)
    return await parts.viewer.job(entry, asker)


@get_or_head("/v1/jobs/{job_id:str}/history", guards=[needs(Scope.JOBS_READ)])
async def job_history(parts: Services, owner: Owner, job_id: FromPath[str]) -> list[HistoryRow]:
    """The last 64 events of the job, oldest first."""
    return await parts.intake.history(job_key(owner, job_id))


@post("/v1/jobs/{job_id:str}/cancel", status_code=202, guards=[needs(Scope.JOBS_WRITE)])
async def cancel_job(parts: Services, owner: Owner, asker: Asking, job_id: FromPath[str]) -> JobView:
    """Stop the job, waiting or running; 409 `job_final` when it has ended."""
    return await parts.viewer.job(await parts.intake.cancel(job_key(owner, job_id)), asker)


@post("/v1/jobs/{job_id:str}/retry", status_code=202, guards=[needs(Scope.JOBS_WRITE)])
async def retry_job(parts: Services, owner: Owner, asker: Asking, job_id: FromPath[str]) -> JobView:
    """A new round with the same id and inputs, from failed, cancelled or expired."""
    return await parts.viewer.job(await parts.intake.retry(job_key(owner, job_id)), asker)


@delete("/v1/jobs/{job_id:str}", status_code=204, guards=[needs(Scope.JOBS_WRITE)])
async def delete_job(parts: Services, owner: Owner, job_id: FromPath[str]) -> None:
    """Remove a job that has ended: record, outputs, log and feed."""
    await parts.intake.delete(job_key(owner, job_id))


@get_or_head("/v1/jobs/{job_id:str}/logs", guards=[needs(Scope.JOBS_READ)], media_type=MediaType.TEXT)
async def job_logs(request: AnyRequest, parts: Services, owner: Owner, job_id: FromPath[str]) -> ASGIApp:
    """The log as text: the kept one (first and last 5 MB) once the job has ended, until then what was said so far."""
    entry = await parts.intake.read(job_key(owner, job_id))
    kept = entry.recorded.job.log
    if kept is not None:
        return await download(request, parts, kept, f"{job_id}.log", "text/plain; charset=utf-8")
    return plain(await _said_so_far(parts, entry.recorded.job.key))


@get_or_head(
    "/v1/jobs/{job_id:str}/files/{name:str}",
    guards=[needs(Scope.JOBS_READ)],
    media_type="application/octet-stream",
)
async def job_file(
    request: AnyRequest, parts: Services, owner: Owner, job_id: FromPath[str], name: FromPath[str]
) -> ASGIApp:
    """One output, with Range and ETag."""
    job = (await parts.intake.read(job_key(owner, job_id))).recorded.job
    file = next((file for file in (job.output.files if job.output else ()) if file.name == name), None)
    if file is None:
        raise Refused("not_found", f"the job has no output named {name[:100]!r}: its files are listed in output.files")
    return await download(request, parts, file.sha256, file.name, file.media_type)


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
)
