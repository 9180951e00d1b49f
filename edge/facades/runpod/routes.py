"""The routes under `/v2/{endpoint}`. Each is a native call in RunPod's words."""

from typing import Annotated, Any

import msgspec
from anyio import CapacityLimiter, create_task_group
from litestar import Response, Router, get, post
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, QueryParameter

from bus.port import Entry
from edge.auth.keys import needs
from edge.facades.runpod import health as numbers
from edge.facades.runpod.pieces import Pieces
from edge.facades.runpod.translation import shown, submission, ticket
from edge.parts import Parts
from edge.problems import explain
from edge.routes.bodies import read_json
from edge.routes.given import AnyRequest, Asking, Owner, Services
from edge.routes.jobs import once_final
from edge.services.pages import PAGE_MAX, Filters
from edge.services.refusals import refusing
from edge.services.view import Asker
from schemas.access import Scope
from schemas.errors import Refused
from schemas.job import JobKey
from schemas.view import JobView
from schemas.words import ACTIVE, WAITING, Status, is_token

WAIT_MS = 90_000.0
SHORTEST_MS, LONGEST_MS = 1_000.0, 300_000.0
CANCEL_WAIT_S = 2.0  # RunPod's own client gives a cancel 3 s
_AT_ONCE = 16

Said = dict[str, Any]
Given = NamedDependency[Pieces]
_reads, _writes = [needs(Scope.JOBS_READ)], [needs(Scope.JOBS_WRITE)]


@post("/run", status_code=200, guards=_writes)
async def run(request: AnyRequest, parts: Services, owner: Owner, asker: Asking, endpoint: FromPath[str]) -> Said:
    """Accept a job."""
    return ticket(await _view(parts, asker, await _submitted(request, parts, owner, endpoint)))


@post("/runsync", status_code=200, guards=_writes)
async def runsync(  # noqa: PLR0913, PLR0917 - what Litestar gives to it
    request: AnyRequest,
    parts: Services,
    owner: Owner,
    asker: Asking,
    endpoint: FromPath[str],
    wait: Annotated[float, QueryParameter()] = WAIT_MS,
) -> Said:
    """Accept a job and hold the answer until it ends, or `wait` milliseconds: then it is told as it stands."""
    entry = await _submitted(request, parts, owner, endpoint)
    milliseconds = max(SHORTEST_MS, min(LONGEST_MS, wait))
    return shown(await _view(parts, asker, await once_final(parts, entry, milliseconds / 1000)))


async def _submitted(request: AnyRequest, parts: Parts, owner: str, endpoint: str) -> Entry:
    body = submission(parts.catalog.get(endpoint).name, await read_json(request))
    return (await parts.intake.submit(owner, body, trace_id=request.headers.get("x-trace-id"))).entry


@get("/status/{job_id:str}", guards=_reads)
async def status(parts: Services, owner: Owner, asker: Asking, endpoint: FromPath[str], job_id: FromPath[str]) -> Said:
    """How the job stands."""
    return shown(await _view(parts, asker, await _found(parts, owner, endpoint, job_id)))


@get("/stream/{job_id:str}", guards=_reads)
async def stream(  # noqa: PLR0913, PLR0917 - what Litestar gives to it
    parts: Services, owner: Owner, asker: Asking, endpoint: FromPath[str], job_id: FromPath[str], pieces: Given
) -> Said:
    """The job as `status` tells it, and what is new of it since the last call."""
    entry = await _found(parts, owner, endpoint, job_id)
    view = await _view(parts, asker, entry)
    with refusing():
        note = await parts.bus.feed.last_progress(entry.recorded.job.key)
    return shown(view) | {"stream": pieces.take(view, note)}


@post("/cancel/{job_id:str}", status_code=200, guards=_writes)
async def cancel(parts: Services, owner: Owner, asker: Asking, endpoint: FromPath[str], job_id: FromPath[str]) -> Said:
    """Stop the job. One that has ended is told as it ended."""
    entry = await _found(parts, owner, endpoint, job_id)
    try:
        entry = await parts.intake.cancel(entry.recorded.job.key)
    except Refused as refused:
        if refused.code != "job_final":
            raise
        entry = await _found(parts, owner, endpoint, job_id)
    if entry.recorded.job.status in ACTIVE:
        entry = await once_final(parts, entry, CANCEL_WAIT_S)
    said = ticket(await _view(parts, asker, entry))
    # The wish is on record; a job that is still being stopped is told as what it is about to be.
    return said | {"status": "CANCELLED"} if entry.recorded.job.status is Status.CANCELLING else said


@post("/retry/{job_id:str}", status_code=200, guards=_writes)
async def retry(parts: Services, owner: Owner, asker: Asking, endpoint: FromPath[str], job_id: FromPath[str]) -> Said:
    """Another round of a job that failed, timed out or was cancelled."""
    entry = await _found(parts, owner, endpoint, job_id)
    return ticket(await _view(parts, asker, await parts.intake.retry(entry.recorded.job.key)))


@post("/purge-queue", status_code=200, guards=_writes)
async def purge_queue(parts: Services, owner: Owner, endpoint: FromPath[str]) -> Said:
    """Cancel whatever of the owner waits for this endpoint; what runs goes on."""
    parts.catalog.get(endpoint)
    waiting = [key for state in sorted(WAITING) for key in await _standing(parts, owner, endpoint, state)]
    limiter = CapacityLimiter(_AT_ONCE)
    removed: list[JobKey] = []
    refused: list[Refused] = []

    async def remove(key: JobKey) -> None:
        try:
            async with limiter:
                entry = await parts.intake.cancel(key, only_waiting=True)
        except Refused as refusal:
            refused.append(refusal)
            return
        if entry.recorded.job.status is Status.CANCELLED:
            removed.append(key)

    async with create_task_group() as tasks:
        for key in waiting:
            tasks.start_soon(remove, key)
    for refusal in refused:
        if refusal.code != "not_found":  # deleted meanwhile
            raise refusal
    return {"removed": len(removed), "status": "completed"}


async def _standing(parts: Parts, owner: str, endpoint: str, state: Status) -> list[JobKey]:
    keys: list[JobKey] = []
    cursor = None
    while True:
        page = await parts.index.list(owner, Filters(status=state, endpoint=endpoint), PAGE_MAX, cursor)
        keys += [entry.recorded.job.key for entry in page.entries]
        cursor = page.next_cursor
        if cursor is None:
            return keys


@get("/health", guards=_reads)
async def health(parts: Services, owner: Owner, endpoint: FromPath[str]) -> dict[str, dict[str, int]]:
    """How many jobs and workers stand where."""
    return await numbers.health(parts, owner, endpoint)


async def _found(parts: Parts, owner: str, endpoint: str, job_id: str) -> Entry:
    """The job of that endpoint. Refused `not_found`."""
    entry = await parts.intake.read(JobKey(owner, job_id)) if is_token(job_id) else None
    if entry is None or entry.recorded.job.endpoint != endpoint:
        raise Refused("not_found", f"{endpoint[:64]} has no job {job_id[:64]}")
    return entry


async def _view(parts: Parts, asker: Asker, entry: Entry) -> JobView:
    return await parts.viewer.job(entry, Asker(key_id=asker.key_id))  # RunPod speaks English


def problem(request: AnyRequest, error: Exception) -> Response[bytes]:
    """A problem document with RunPod's own `error` beside."""
    said = explain(error, request.url.path)
    told = msgspec.json.decode(said.body)
    body = msgspec.json.encode({"error": told["detail"], **told})
    return Response(body, status_code=said.status, headers=said.headers, media_type="application/json")


def router() -> Router:
    """The facade; one memory of what was streamed for each app. What it is, RunPod's own documents say."""
    pieces = Pieces()

    async def remembered() -> Pieces:
        return pieces

    return Router(
        "/v2/{endpoint:str}",
        route_handlers=[run, runsync, status, stream, cancel, retry, purge_queue, health],
        dependencies={"pieces": Provide(remembered)},
        exception_handlers={Exception: problem},
        include_in_schema=False,
    )
