"""The RunPod facade: `/v2/{endpoint}/…`, for clients of RunPod's serverless API.

First bodies, statuses and jobs are translated between RunPod's format and ours, which is pure: RunPod uses
milliseconds, and this project uses seconds. Then jobs and workers are counted for `health`. The handlers and
`make_router` are at the end. Only `edge.app` imports this module.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import Annotated, Any

import msgspec
from litestar import Response, Router, get, post
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, QueryParameter, SkipValidation
from msgspec import Meta, Struct, field, structs

from bus.interface import VersionedRecord
from edge.core.concurrency import gather_bounded, translate_errors
from edge.core.validation import decode_as
from edge.http.auth import require_scope
from edge.http.dependencies import (
    AnyConnection,
    AnyRequest,
    AskerDep,
    EdgeServices,
    OwnerDep,
    ServicesDep,
    read_when_final,
    record_action_for_other_owner,
)
from edge.http.problems import find_language, make_problem_response
from edge.http.request_input import ANY_PARAMETER, read_json
from edge.index.rows import PAGE_LIMIT, JobFilters
from edge.jobs.view import Asker
from schemas.container_protocol import OUTPUT_FILE
from schemas.credentials import Scope
from schemas.events import FeedPosition, ProgressMessage
from schemas.host import HostView
from schemas.installation import AuditAction
from schemas.job import ACTIVE_STATUSES, FINAL_STATUSES, WAITING_STATUSES, JobKey, Status, is_token
from schemas.job_view import JobView, OutputView
from schemas.problems import ProblemError

# Failures with these codes are timeouts.
TIMEOUT_CODES = ("execution_timeout",)

# CANCELLING is not CANCELLED: the job may still end in another way, and clients stop polling at CANCELLED.
STATUSES: Mapping[Status, str] = {
    Status.SCHEDULED: "IN_QUEUE",
    Status.QUEUED: "IN_QUEUE",
    Status.RUNNING: "IN_PROGRESS",
    Status.CANCELLING: "IN_PROGRESS",
    Status.SUCCEEDED: "COMPLETED",
    Status.FAILED: "FAILED",
    Status.CANCELLED: "CANCELLED",
    Status.EXPIRED: "TIMED_OUT",
}

# Native fields that a RunPod submit may also contain.
NATIVE_FIELDS = ("priority", "tags", "not_before", "deadline", "await_input", "trace_id")

Milliseconds = Annotated[float, Meta(ge=0)]


class RunPolicy(Struct, frozen=True, rename="camel"):
    """The `policy` of a submit. Absent, null and 0 mean the default of the endpoint."""

    execution_timeout: Milliseconds | None = None
    ttl: Milliseconds | None = None
    low_priority: bool | None = None


class RunRequest(Struct, frozen=True):
    """The body of `run` and `runsync`. Unknown keys are ignored, as RunPod does."""

    input: dict[str, Any]
    webhook: str | None = None
    policy: RunPolicy | None = field(default_factory=RunPolicy)


def build_submission(endpoint: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return the native body. Raises ProblemError `input_invalid`, which names the field."""
    request = decode_as(body, RunRequest)
    policy = request.policy or RunPolicy()
    native: dict[str, Any] = {name: body[name] for name in NATIVE_FIELDS if name in body}
    native |= {"endpoint": endpoint, "input": request.input, "policy": _policy_limits(policy)}
    if request.webhook:
        native["webhook"] = {"url": request.webhook}
    if policy.low_priority:
        native["priority"] = "low"
    return native


def _policy_limits(policy: RunPolicy) -> dict[str, float]:
    """Return the native limits. `ttl` ends only jobs that have not started, as start_timeout_s does."""
    limits_ms = {"execution_timeout_s": policy.execution_timeout, "start_timeout_s": policy.ttl}
    return {name: value / 1000 for name, value in limits_ms.items() if value}


def status_of(job: JobView) -> str:
    """Return RunPod's status of the job."""
    timed_out = job.error is not None and job.error.code in TIMEOUT_CODES
    return "TIMED_OUT" if timed_out and job.status is Status.FAILED else STATUSES[job.status]


def id_and_status(job: JobView) -> dict[str, Any]:
    """Return the body of `run`, `cancel` and `retry`."""
    return {"id": job.id, "status": status_of(job)}


def job_status(job: JobView) -> dict[str, Any]:
    """Return the body of `status` and `runsync`."""
    return id_and_status(job) | _times(job) | _output_or_error(job)


def job_output(output: OutputView) -> dict[str, Any]:
    """Return the output data of the job, and its files if there are any. output.json is not listed as a file."""
    files = [structs.asdict(file) for file in output.files if file.name != OUTPUT_FILE]
    return output.data | {"files": files} if files else output.data


def _output_or_error(job: JobView) -> dict[str, Any]:
    if job.output is not None and job.status is Status.SUCCEEDED:
        return {"output": job_output(job.output)}
    if job.progress is not None and job.status not in FINAL_STATUSES:
        return {"output": msgspec.to_builtins(job.progress)}
    if job.error is not None and job.status is Status.FAILED:
        return {"error": f"{job.error.code}: {job.error.message}"}
    return {"error": f"expired: {job.message}"} if job.status is Status.EXPIRED else {}


def _times(job: JobView) -> dict[str, int]:
    """Return `delayTime` (before the start) and `executionTime`, as far as they are known."""
    delay_ms = _duration_ms(job.usage.queued_s, job.queued_at, job.started_at)
    execution_ms = _duration_ms(job.usage.run_s, job.started_at, job.finished_at)
    times = {"delayTime": delay_ms, "executionTime": execution_ms}
    return {name: value for name, value in times.items() if value is not None}


def _duration_ms(seconds: float | None, began: datetime | None, ended: datetime | None) -> int | None:
    if seconds is None and began is not None and ended is not None:
        seconds = (ended - began).total_seconds()
    return None if seconds is None else max(0, round(seconds * 1000))


JOB_COUNTS: Mapping[str, frozenset[Status]] = {
    "completed": frozenset({Status.SUCCEEDED}),
    "failed": frozenset({Status.FAILED, Status.EXPIRED}),
    "inProgress": ACTIVE_STATUSES,
    "inQueue": WAITING_STATUSES,
}

# A worker is a host. A host that is off or stopping does not count, like a worker that scaled to zero.
WORKER_BY_HOST_STATE: Mapping[str, str] = {
    "waking": "initializing",
    "draining": "throttled",
    "blocked": "throttled",
    "fault": "unhealthy",
}
WORKER_STATES = ("idle", "running", "initializing", "throttled", "unhealthy")
_UNFIT_GPU = frozenset({"unhealthy", "lost"})


async def endpoint_health(services: EdgeServices, owner: str, endpoint: str) -> dict[str, dict[str, int]]:
    """Return the body of `health`. Raises ProblemError `endpoint_unknown` or `unavailable`."""
    services.endpoints.get(endpoint)
    await services.index.wait_for_own_writes(owner)
    retried = await services.index.count_retried(owner, endpoint)
    count_by_status = Counter[Status]()
    for key, count in services.index.count_jobs().items():
        if (key.owner, key.endpoint) == (owner, endpoint):
            count_by_status[key.status] += count
    jobs = {name: sum(count_by_status[status] for status in statuses) for name, statuses in JOB_COUNTS.items()}
    hosts = services.power.host_views(services.hosts.views())
    return {
        "jobs": jobs | {"retried": retried},
        "workers": _workers(host for host in hosts if endpoint in host.endpoints),
    }


def _workers(hosts: Iterable[HostView]) -> dict[str, int]:
    states = Counter(_worker_state(host) for host in hosts)
    return {state: states[state] for state in WORKER_STATES}


def _worker_state(host: HostView) -> str | None:
    if host.state != "online":
        return WORKER_BY_HOST_STATE.get(host.state)
    if host.gpus and all(gpu.fitness in _UNFIT_GPU for gpu in host.gpus):
        return "unhealthy"
    return "running" if host.jobs else "idle"


REMEMBERED_JOBS_LIMIT = 10_000  # the last output of a forgotten job, or of another edge, is sent once more
DEFAULT_WAIT_MS = 90_000.0
MIN_WAIT_MS, MAX_WAIT_MS = 1_000.0, 300_000.0
CANCEL_WAIT_TIMEOUT_S = 2.0  # RunPod's own client waits 3 s for a cancel
_CONCURRENT_CANCELS_LIMIT = 16


class _StreamPosition(Struct):
    """The progress and output that `stream` has sent of one job. `output_round`: the round of that output."""

    progress_position: FeedPosition | None = None
    output_round: int = 0


class StreamCursors:
    """Remembers what `stream` has sent of each job.

    RunPod's clients poll until nothing is left, so the same output must not be sent twice.
    """

    def __init__(self) -> None:
        self._positions: OrderedDict[JobKey, _StreamPosition] = OrderedDict()

    def take_new(self, job: JobView, progress: ProgressMessage | None) -> list[dict[str, Any]]:
        """Return what is new since the last call: the latest progress, and the output of a job that has ended."""
        sent = self._position_of(JobKey(job.owner, job.id))
        items = []
        if (
            progress is not None
            and progress.position != sent.progress_position
            and progress.position.round == job.round
        ):
            sent.progress_position = progress.position
            fields = ("fraction", "stage", "done", "total")
            items.append({"output": {name: getattr(progress, name) for name in fields}})
        if job.status is Status.SUCCEEDED and job.output is not None and sent.output_round != job.round:
            sent.output_round = job.round
            items.append({"output": msgspec.to_builtins(job_output(job.output))})
        return items

    def _position_of(self, key: JobKey) -> _StreamPosition:
        position = self._positions.setdefault(key, _StreamPosition())
        self._positions.move_to_end(key)
        if len(self._positions) > REMEMBERED_JOBS_LIMIT:
            self._positions.popitem(last=False)
        return position


JsonObject = dict[str, Any]
EntryDep = NamedDependency[SkipValidation[VersionedRecord]]  # the job that the path names
StreamCursorsDep = NamedDependency[StreamCursors]
_READ_GUARDS, _WRITE_GUARDS = [require_scope(Scope.JOBS_READ)], [require_scope(Scope.JOBS_WRITE)]


@post("/run", status_code=200, guards=_WRITE_GUARDS)
async def run(
    request: AnyRequest, services: ServicesDep, owner: OwnerDep, asker: AskerDep, endpoint: FromPath[str]
) -> JsonObject:
    """Submit a job and return its id and status without waiting."""
    return id_and_status(await _view(services, asker, await _submit(request, services, owner, endpoint)))


@post("/runsync", status_code=200, guards=_WRITE_GUARDS)
async def runsync(  # noqa: PLR0913, PLR0917 - a parameter per dependency
    request: AnyRequest,
    services: ServicesDep,
    owner: OwnerDep,
    asker: AskerDep,
    endpoint: FromPath[str],
    wait: Annotated[float, QueryParameter()] = DEFAULT_WAIT_MS,
) -> JsonObject:
    """Submit a job, and respond when it has ended or after `wait` milliseconds."""
    entry = await _submit(request, services, owner, endpoint)
    milliseconds = max(MIN_WAIT_MS, min(MAX_WAIT_MS, wait))
    return job_status(await _view(services, asker, await read_when_final(services, entry, milliseconds / 1000)))


async def _submit(request: AnyRequest, services: EdgeServices, owner: str, endpoint: str) -> VersionedRecord:
    body = build_submission(services.endpoints.get(endpoint).name, await read_json(request))
    return (await services.jobs.submit(owner, body, trace_id=request.headers.get("x-trace-id"))).entry


@get("/status/{job_id:str}", guards=_READ_GUARDS)
async def status(services: ServicesDep, asker: AskerDep, entry: EntryDep) -> JsonObject:
    """Return the state of a job: its status, times, and output or error."""
    return job_status(await _view(services, asker, entry))


@get("/stream/{job_id:str}", guards=_READ_GUARDS)
async def stream(services: ServicesDep, asker: AskerDep, entry: EntryDep, cursors: StreamCursorsDep) -> JsonObject:
    """Return the state of a job, and its progress and output since the last call."""
    view = await _view(services, asker, entry)
    with translate_errors():
        progress = await services.bus.feed.last_progress(entry.record.job.key)
    return job_status(view) | {"stream": cursors.take_new(view, progress)}


@post("/cancel/{job_id:str}", status_code=200, guards=_WRITE_GUARDS)
async def cancel(request: AnyRequest, services: ServicesDep, asker: AskerDep, entry: EntryDep) -> JsonObject:
    """Cancel a job. Return the final state of a job that has already ended."""
    if entry.record.job.status not in FINAL_STATUSES:
        entry = await services.jobs.cancel_unfinished(entry.record.job.key)
        await record_action_for_other_owner(request, services, AuditAction.JOB_CANCELLED, entry.record.job.key)
    if entry.record.job.status in ACTIVE_STATUSES:
        entry = await read_when_final(services, entry, CANCEL_WAIT_TIMEOUT_S)
    body = id_and_status(await _view(services, asker, entry))
    # The cancellation is stored, so a job that is still being stopped is reported as cancelled.
    return body | {"status": "CANCELLED"} if entry.record.job.status is Status.CANCELLING else body


@post("/retry/{job_id:str}", status_code=200, guards=_WRITE_GUARDS)
async def retry(request: AnyRequest, services: ServicesDep, asker: AskerDep, entry: EntryDep) -> JsonObject:
    """Run a job again that failed, timed out or was cancelled."""
    retried = await services.jobs.retry(entry.record.job.key)
    await record_action_for_other_owner(request, services, AuditAction.JOB_RETRIED, entry.record.job.key)
    return id_and_status(await _view(services, asker, retried))


@post("/purge-queue", status_code=200, guards=_WRITE_GUARDS)
async def purge_queue(services: ServicesDep, owner: OwnerDep, endpoint: FromPath[str]) -> JsonObject:
    """Cancel the owner's waiting jobs of this endpoint. Running jobs continue."""
    services.endpoints.get(endpoint)
    waiting = [
        key for state in sorted(WAITING_STATUSES) for key in await _list_job_keys(services, owner, endpoint, state)
    ]
    calls = [partial(_cancel_waiting, services, key) for key in waiting]
    results = await gather_bounded(calls, _CONCURRENT_CANCELS_LIMIT)
    for problem in (result for result in results if isinstance(result, ProblemError)):
        raise problem
    return {"removed": sum(result is True for result in results), "status": "completed"}


async def _cancel_waiting(services: EdgeServices, key: JobKey) -> bool | ProblemError:
    """Cancel the job if it still waits. Return whether it is cancelled, or the problem, so that the others go on."""
    try:
        entry = await services.jobs.cancel_waiting(key)
    except ProblemError as problem:
        return False if problem.code == "not_found" else problem  # the job was deleted in the meantime
    return entry.record.job.status is Status.CANCELLED


async def _list_job_keys(services: EdgeServices, owner: str, endpoint: str, state: Status) -> list[JobKey]:
    keys: list[JobKey] = []
    cursor = None
    while True:
        page = await services.index.list_jobs(
            owner, JobFilters(statuses=(state,), endpoint=endpoint), PAGE_LIMIT, cursor
        )
        keys += [entry.record.job.key for entry in page.records]
        cursor = page.next_cursor
        if cursor is None:
            return keys


@get("/health", guards=_READ_GUARDS)
async def health(services: ServicesDep, owner: OwnerDep, endpoint: FromPath[str]) -> dict[str, dict[str, int]]:
    """Return the number of jobs and workers by state."""
    return await endpoint_health(services, owner, endpoint)


async def _view(services: EdgeServices, asker: Asker, entry: VersionedRecord) -> JobView:
    return await services.job_views.build(entry, asker)


def exception_handler(request: AnyRequest, error: Exception) -> Response[bytes]:
    """Return the problem document with RunPod's field `error`. The exception handler of the facade."""
    response = make_problem_response(error, request.url.path, language=find_language(request.scope))
    problem = msgspec.json.decode(response.body)
    body = msgspec.json.encode({"error": problem["detail"], **problem})
    return Response(body, status_code=response.status, headers=response.headers, media_type="application/json")


async def _provide_entry(
    services: ServicesDep, owner: OwnerDep, endpoint: FromPath[str], job_id: FromPath[str]
) -> VersionedRecord:
    """Return the job of that endpoint. Raises ProblemError `not_found`."""
    entry = await services.jobs.read(JobKey(owner, job_id)) if is_token(job_id) else None
    if entry is None or entry.record.job.endpoint != endpoint:
        raise ProblemError("not_found", f"{endpoint[:64]} has no job {job_id[:64]}")
    return entry


async def _provide_cursors(request: AnyConnection) -> StreamCursors:
    cursors: StreamCursors = request.app.state.stream_cursors
    return cursors


def make_router() -> Router:
    """Return the routes. RunPod documents them, so OpenAPI does not."""
    return Router(
        "/v2/{endpoint:str}",
        route_handlers=[run, runsync, status, stream, cancel, retry, purge_queue, health],
        dependencies={"entry": Provide(_provide_entry), "cursors": Provide(_provide_cursors)},
        exception_handlers={Exception: exception_handler},
        opt={ANY_PARAMETER: True},
        include_in_schema=False,
    )
