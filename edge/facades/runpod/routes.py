"""What `stream` has given of a job already: RunPod's clients ask again until nothing comes, so nothing comes twice."""

from collections import OrderedDict
from typing import Annotated, Any

import msgspec
from anyio import CapacityLimiter, create_task_group
from litestar import Response, Router, get, post
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, QueryParameter
from msgspec import Struct

from bus.interface import VersionedRecord
from edge.core.error_handling import translate_errors
from edge.facades.runpod import health as numbers
from edge.facades.runpod.mapping import build_submission, id_and_status, job_output, job_status
from edge.http.auth import require_scope
from edge.http.dependencies import AnyRequest, Asking, EdgeServices, OwnerDep, ServicesDep
from edge.http.problems import make_problem_response
from edge.http.request_body import read_json
from edge.http.routes.jobs import wait_until_final
from edge.index.paging import PAGE_LIMIT, JobFilters
from edge.jobs.view import Asker
from schemas.auth import Scope
from schemas.feed import FeedPosition, ProgressMessage
from schemas.ids import JobKey, is_token
from schemas.job_view import JobView
from schemas.problems import ProblemError
from schemas.status import ACTIVE_STATUSES, WAITING_STATUSES, Status

REMEMBERED_JOBS_LIMIT = 10_000  # jobs; one that is forgotten, or another edge's, gives its last piece once more


class _StreamPosition(Struct):
    """`done`: the round whose output was given."""

    progress_position: FeedPosition | None = None
    output_round: int = 0


class StreamCursors:
    """One edge's memory of it: per job the progress last given, and whether the output was."""

    def __init__(self) -> None:
        self._positions: OrderedDict[JobKey, _StreamPosition] = OrderedDict()

    def take_new(self, job: JobView, note: ProgressMessage | None) -> list[dict[str, Any]]:
        """What is new since the last call: progress said meanwhile (the latest of it), and the output at the end."""
        given = self._position_of(JobKey(job.owner, job.id))
        pieces = []
        if note is not None and note.position != given.progress_position and note.position.round == job.round:
            given.progress_position = note.position
            told = {"fraction": note.fraction, "stage": note.stage, "done": note.done, "total": note.total}
            pieces.append({"output": told})
        if job.status is Status.SUCCEEDED and job.output is not None and given.output_round != job.round:
            given.output_round = job.round
            pieces.append({"output": msgspec.to_builtins(job_output(job.output))})
        return pieces

    def _position_of(self, key: JobKey) -> _StreamPosition:
        given = self._positions.setdefault(key, _StreamPosition())
        self._positions.move_to_end(key)
        if len(self._positions) > REMEMBERED_JOBS_LIMIT:
            self._positions.popitem(last=False)
        return given


# MERGED edge/facades/runpod/routes.py: The routes under `/v2/{endpoint}`. Each is a native call in RunPod's words.


DEFAULT_WAIT_MS = 90_000.0
MIN_WAIT_MS, MAX_WAIT_MS = 1_000.0, 300_000.0
CANCEL_WAIT_TIMEOUT_S = 2.0  # RunPod's own client gives a cancel 3 s
_CONCURRENT_CANCELS_LIMIT = 16

JsonObject = dict[str, Any]
StreamCursorsDep = NamedDependency[StreamCursors]
_READ_GUARDS, _WRITE_GUARDS = [require_scope(Scope.JOBS_READ)], [require_scope(Scope.JOBS_WRITE)]


@post("/run", status_code=200, guards=_WRITE_GUARDS)
async def run(
    request: AnyRequest, parts: ServicesDep, owner: OwnerDep, asker: Asking, endpoint: FromPath[str]
) -> JsonObject:
    """Accept a job."""
    return id_and_status(await _view(parts, asker, await _submit(request, parts, owner, endpoint)))


@post("/runsync", status_code=200, guards=_WRITE_GUARDS)
async def runsync(  # noqa: PLR0913, PLR0917 - what Litestar gives to it
    request: AnyRequest,
    parts: ServicesDep,
    owner: OwnerDep,
    asker: Asking,
    endpoint: FromPath[str],
    wait: Annotated[float, QueryParameter()] = DEFAULT_WAIT_MS,
) -> JsonObject:
    """Accept a job and hold the answer until it ends, or `wait` milliseconds: then it is told as it stands."""
    entry = await _submit(request, parts, owner, endpoint)
    milliseconds = max(MIN_WAIT_MS, min(MAX_WAIT_MS, wait))
    return job_status(await _view(parts, asker, await wait_until_final(parts, entry, milliseconds / 1000)))


async def _submit(request: AnyRequest, parts: EdgeServices, owner: str, endpoint: str) -> VersionedRecord:
    body = build_submission(parts.endpoints.get(endpoint).name, await read_json(request))
    return (await parts.jobs.submit(owner, body, trace_id=request.headers.get("x-trace-id"))).record


@get("/status/{job_id:str}", guards=_READ_GUARDS)
async def status(
    parts: ServicesDep, owner: OwnerDep, asker: Asking, endpoint: FromPath[str], job_id: FromPath[str]
) -> JsonObject:
    """How the job stands."""
    return job_status(await _view(parts, asker, await _find_job(parts, owner, endpoint, job_id)))


@get("/stream/{job_id:str}", guards=_READ_GUARDS)
async def stream(  # noqa: PLR0913, PLR0917 - what Litestar gives to it
    parts: ServicesDep,
    owner: OwnerDep,
    asker: Asking,
    endpoint: FromPath[str],
    job_id: FromPath[str],
    pieces: StreamCursorsDep,
) -> JsonObject:
    """The job as `status` tells it, and what is new of it since the last call."""
    entry = await _find_job(parts, owner, endpoint, job_id)
    view = await _view(parts, asker, entry)
    with translate_errors():
        note = await parts.bus.feed.last_progress(entry.record.job.key)
    return job_status(view) | {"stream": pieces.take_new(view, note)}


@post("/cancel/{job_id:str}", status_code=200, guards=_WRITE_GUARDS)
async def cancel(
    parts: ServicesDep, owner: OwnerDep, asker: Asking, endpoint: FromPath[str], job_id: FromPath[str]
) -> JsonObject:
    """Stop the job. One that has ended is told as it ended."""
    entry = await _find_job(parts, owner, endpoint, job_id)
    try:
        entry = await parts.jobs.cancel(entry.record.job.key)
    except ProblemError as refused:
        if refused.code != "job_final":
            raise
        entry = await _find_job(parts, owner, endpoint, job_id)
    if entry.record.job.status in ACTIVE_STATUSES:
        entry = await wait_until_final(parts, entry, CANCEL_WAIT_TIMEOUT_S)
    said = id_and_status(await _view(parts, asker, entry))
    # The wish is on record; a job that is still being stopped is told as what it is about to be.
    return said | {"status": "CANCELLED"} if entry.record.job.status is Status.CANCELLING else said


@post("/retry/{job_id:str}", status_code=200, guards=_WRITE_GUARDS)
async def retry(
    parts: ServicesDep, owner: OwnerDep, asker: Asking, endpoint: FromPath[str], job_id: FromPath[str]
) -> JsonObject:
    """Another round of a job that failed, timed out or was cancelled."""
    entry = await _find_job(parts, owner, endpoint, job_id)
    return id_and_status(await _view(parts, asker, await parts.jobs.retry(entry.record.job.key)))


@post("/purge-queue", status_code=200, guards=_WRITE_GUARDS)
async def purge_queue(parts: ServicesDep, owner: OwnerDep, endpoint: FromPath[str]) -> JsonObject:
    """Cancel whatever of the owner waits for this endpoint; what runs goes on."""
    parts.endpoints.get(endpoint)
    waiting = [key for state in sorted(WAITING_STATUSES) for key in await _list_job_keys(parts, owner, endpoint, state)]
    limiter = CapacityLimiter(_CONCURRENT_CANCELS_LIMIT)
    removed: list[JobKey] = []
    refused: list[ProblemError] = []

    async def remove(key: JobKey) -> None:
        try:
            async with limiter:
                entry = await parts.jobs.cancel_waiting(key)
        except ProblemError as refusal:
            refused.append(refusal)
            return
        if entry.record.job.status is Status.CANCELLED:
            removed.append(key)

    async with create_task_group() as tasks:
        for key in waiting:
            tasks.start_soon(remove, key)
    for refusal in refused:
        if refusal.code != "not_found":  # deleted meanwhile
            raise refusal
    return {"removed": len(removed), "status": "completed"}


async def _list_job_keys(parts: EdgeServices, owner: str, endpoint: str, state: Status) -> list[JobKey]:
    keys: list[JobKey] = []
    cursor = None
    while True:
        page = await parts.index.list_jobs(owner, JobFilters(status=state, endpoint=endpoint), PAGE_LIMIT, cursor)
        keys += [entry.record.job.key for entry in page.records]
        cursor = page.next_cursor
        if cursor is None:
            return keys


@get("/health", guards=_READ_GUARDS)
async def health(parts: ServicesDep, owner: OwnerDep, endpoint: FromPath[str]) -> dict[str, dict[str, int]]:
    """How many jobs and workers stand where."""
    return await numbers.endpoint_health(parts, owner, endpoint)


async def _find_job(parts: EdgeServices, owner: str, endpoint: str, job_id: str) -> VersionedRecord:
    """The job of that endpoint. Refused `not_found`."""
    entry = await parts.jobs.read(JobKey(owner, job_id)) if is_token(job_id) else None
    if entry is None or entry.record.job.endpoint != endpoint:
        raise ProblemError("not_found", f"{endpoint[:64]} has no job {job_id[:64]}")
    return entry


async def _view(parts: EdgeServices, asker: Asker, entry: VersionedRecord) -> JobView:
    return await parts.job_views.build(entry, Asker(key_id=asker.key_id))  # RunPod speaks English


def exception_handler(request: AnyRequest, error: Exception) -> Response[bytes]:
    """A problem document with RunPod's own `error` beside."""
    said = make_problem_response(error, request.url.path)
    told = msgspec.json.decode(said.body)
    body = msgspec.json.encode({"error": told["detail"], **told})
    return Response(body, status_code=said.status, headers=said.headers, media_type="application/json")


def router() -> Router:
    """The facade; one memory of what was streamed for each app. What it is, RunPod's own documents say."""
    pieces = StreamCursors()

    async def remembered() -> StreamCursors:
        return pieces

    return Router(
        "/v2/{endpoint:str}",
        route_handlers=[run, runsync, status, stream, cancel, retry, purge_queue, health],
        dependencies={"pieces": Provide(remembered)},
        exception_handlers={Exception: exception_handler},
        include_in_schema=False,
    )
