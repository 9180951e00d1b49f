"""`/easy/submit`, `/easy/query` and `/easy/download`: the vendor's words in, the services' jobs behind."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from anyio import current_time, move_on_after, to_thread
from litestar import Response, Router, get, route
from litestar.params import FromPath
from litestar.types import ASGIApp

from bus.interface import VersionedRecord
from edge.core.error_handling import problem_for_known_error, translate_errors
from edge.core.messages import Language
from edge.facades.heygem.auth import authenticate_owner
from edge.facades.heygem.mapping import (
    EasySubmit,
    FieldMissing,
    build_submission,
    exporting_data,
    job_data,
    missing_result_data,
    parse_submit,
    result_name,
)
from edge.facades.heygem.responses import ACCEPTED, exception_handler, query_result, to_http_response
from edge.facades.heygem.result_export import ExportState, result_file
from edge.facades.heygem.shared_dir import open_shared_file
from edge.http.auth import NO_AUTH
from edge.http.dependencies import AnyRequest, EdgeServices, ServicesDep
from edge.http.request_body import PLACEHOLDER_DIGEST, read_json
from edge.http.responses import file_response
from edge.jobs.view import Asker
from schemas.asset import DIGEST_SCHEME, guess_media_type
from schemas.auth import Scope
from schemas.ids import JobKey, is_token
from schemas.job import Job
from schemas.job_view import JobView
from schemas.problems import ProblemError
from schemas.status import FINAL_STATUSES, Status

# Whatever the method, the answer is 200 and says by its code what is wrong.
_any_method = partial(route, http_method=["GET", "POST", "PUT", "PATCH", "DELETE"], status_code=200)
_RESULT_SUFFIX = result_name("")
_SUBMIT_ATTEMPTS_LIMIT = 10  # of a submit that others are faster than


@_any_method("/submit")
async def submit(request: AnyRequest, parts: ServicesDep) -> Response[bytes]:
    """Accept a job under the client's code."""
    if request.method != "POST":
        raise ProblemError("input_invalid", "a submit is a POST with a JSON body")
    asked = parse_submit(await read_json(request))
    await retry_while_unavailable(request, partial(_submit_once, request, parts, asked))
    return to_http_response(ACCEPTED)


async def _submit_once(request: AnyRequest, parts: EdgeServices, asked: EasySubmit) -> None:
    owner = await authenticate_owner(request, parts, Scope.JOBS_WRITE)
    endpoint = parts.endpoints.get(parts.settings.heygem.endpoint)
    await parts.jobs.validate(build_submission(endpoint, asked, PLACEHOLDER_DIGEST, PLACEHOLDER_DIGEST))
    await parts.readiness.check()  # before files are copied
    audio = await _asset_reference(parts, owner, asked.audio)
    video = await _asset_reference(parts, owner, asked.video)
    key = JobKey(owner, asked.code)
    async with parts.result_export.expect_result(key):
        await _accept_job(parts, key, build_submission(endpoint, asked, audio, video))


async def _accept_job(parts: EdgeServices, key: JobKey, body: dict[str, Any]) -> None:
    """Accept `body`: as a new job, as the job that is there, or as the next round of one that has ended."""
    for _ in range(_SUBMIT_ATTEMPTS_LIMIT):
        taken: ProblemError | None = None
        known: VersionedRecord | None
        try:
            accepted = await parts.jobs.submit_equivalent(key, body)
        except ProblemError as refused:
            if refused.code != "conflict":
                raise
            taken = refused
            with translate_errors():
                known = await parts.bus.job_store.read(key)
        else:
            if not accepted.replayed:
                return
            known = accepted.record
        if known is not None and not await _can_resubmit(parts, known.record.job, same=taken is None):
            if taken is not None:
                raise taken
            return
        if known is not None and await parts.jobs.resubmit(known, body):
            return
    raise ProblemError("unavailable", "others keep submitting under this code at the same time: try again")


async def _can_resubmit(parts: EdgeServices, job: Job, *, same: bool) -> bool:
    """Whether a submit begins the job again; `same`: it asks for the same content.

    What a query tells as done is done when the content is the same. Raises Refused `unavailable` while the job is
    being cancelled: it can be begun again in a moment.
    """
    if job.status is Status.CANCELLING:
        raise ProblemError("unavailable", "the job of this code is being cancelled: try again")
    if same and job.status is Status.SUCCEEDED:
        with translate_errors():
            return await parts.result_export.is_missing(job)
    return job.status in FINAL_STATUSES


async def _asset_reference(parts: EdgeServices, owner: str, name: str) -> str:
    """What a native submit calls the file; one of the shared folder is kept as the owner's asset first."""
    if name.startswith(DIGEST_SCHEME) or name.lower().startswith(("http://", "https://")):
        return name
    root = parts.settings.heygem.data_root
    if root is None:
        raise ProblemError(
            "input_invalid", "no folder is shared (heygem.data_root): name an http(s) URL or sha256:<hex>"
        )
    file = await to_thread.run_sync(open_shared_file, root, name)
    _, sha256, _ = await parts.assets.put(owner, file.read_chunks(), None, file.name, guess_media_type(file.name))
    return f"{DIGEST_SCHEME}{sha256}"


@_any_method("/query")
async def query(request: AnyRequest, parts: ServicesDep) -> Response[bytes]:
    """How a job stands; what has ended is told for as long as the job is kept."""
    owner = await authenticate_owner(request, parts, Scope.JOBS_READ)
    code = request.query_params.get("code")
    if code is None:
        raise FieldMissing("code")
    entry = await _find_job(parts, owner, code)
    view = await parts.job_views.build(entry, Asker(Language.ZH))
    return to_http_response(query_result(await _query_data(parts, entry, view)))


async def _find_job(parts: EdgeServices, owner: str, code: str) -> VersionedRecord:
    if not is_token(code):
        raise ProblemError("not_found", "no job has such a code")
    return await parts.jobs.read(JobKey(owner, code))


async def _query_data(parts: EdgeServices, entry: VersionedRecord, view: JobView) -> dict[str, Any]:
    """Done is told when the result is where clients look for it, never before."""
    if view.status is Status.SUCCEEDED:
        with translate_errors():
            place = await parts.result_export.export_state(entry.record.job)
        if place is not ExportState.EXPORTED:
            return exporting_data(view) if place is ExportState.PENDING else missing_result_data(view)
    return job_data(view)


@get("/download/{path:path}", status_code=200)
async def download_result(request: AnyRequest, parts: ServicesDep, path: FromPath[str]) -> ASGIApp:
    """The result, with Range."""
    owner = await authenticate_owner(request, parts, Scope.JOBS_READ)
    name = path.removeprefix("/")
    entry = await _find_job(parts, owner, name.removesuffix(_RESULT_SUFFIX) if name.endswith(_RESULT_SUFFIX) else "")
    file = result_file(entry.record.job)
    if file is None:
        raise ProblemError("not_found", "the job has no result: ask /easy/query how it stands")
    return await file_response(request, parts, file.sha256, name, file.media_type)


def router() -> Router:
    """The facade, with an authentication and errors of its own. OpenAPI has no words for what always answers 200."""
    return Router(
        "/easy",
        route_handlers=[submit, query, download_result],
        opt={NO_AUTH: True},
        exception_handlers={Exception: exception_handler},
        include_in_schema=False,
        request_max_body_size=None,
    )


# MERGED edge/facades/heygem/holding.py: Hold a submit while the broker is away: the vendor's clients give a video up
# at any answer but "accepted".


HOLD_TIMEOUT_S = 6.0  # the broker restarts in 1 to 3 s; clients with a time limit of their own wait 10 s or longer
HOLD_RETRY_INTERVAL_S = 0.2

TRANSIENT_CODE = "unavailable"  # the code of every refusal that ends by itself


async def retry_while_unavailable(request: AnyRequest, attempt: Callable[[], Awaitable[None]]) -> None:
    """Make `attempt` until it is not refused as `unavailable`, for HOLD_S at most or until the client disconnects.

    The body of `request` must have been read. No attempt is cut off, so the last one may end later: a broker that
    does not answer is given up after 5 s. Raises what the last attempt raised.
    """
    ends_at = current_time() + HOLD_TIMEOUT_S
    while True:
        try:
            return await attempt()
        except Exception as error:
            refused = error if isinstance(error, ProblemError) else problem_for_known_error(error)
            if refused is None or refused.code != TRANSIENT_CODE:
                raise
            left_s = min(HOLD_RETRY_INTERVAL_S, ends_at - current_time())
            if left_s <= 0 or await _wait_for_disconnect(request, left_s):
                raise


async def _wait_for_disconnect(request: AnyRequest, within_s: float) -> bool:
    """Wait `within_s`, or until the client disconnects; whether it did."""
    with move_on_after(within_s):
        while (await request.receive())["type"] != "http.disconnect":
            pass
        return True
    return False
