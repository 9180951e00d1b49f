"""The routes of the vendor's two servers, each of which translates a request into native calls.

The first server makes videos: `/easy/submit`, `query`, `download` and `upload`. The second turns text into speech:
`preprocess_and_tran` and `invoke`. The desktop client calls `preprocess_and_tran` once for each voice and keeps what
it answers. The response of `invoke` is the WAV itself: the request waits for a job. If its client disconnects, no
client can fetch the speech any more, so the job is cancelled.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import msgspec
from anyio import current_time, move_on_after, to_thread
from litestar import Response, Router, get, post, route
from litestar.datastructures import UploadFile
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath
from litestar.types import ASGIApp

from bus.interface import VersionedRecord
from edge.core.concurrency import problem_for_known_error, translate_errors
from edge.core.messages import format_problem
from edge.facades.heygem.facade import ExportState, HeygemFacade, open_shared_file, result_file
from edge.facades.heygem.mapping import (
    EasySubmit,
    FieldMissing,
    SpeechRequest,
    build_speech_submission,
    build_submission,
    exporting_data,
    job_data,
    missing_result_data,
    parse_reference,
    parse_speech,
    parse_submit,
    result_name,
)
from edge.facades.heygem.protocol import (
    ACCEPTED,
    TTS_PREFIX,
    authenticate_owner,
    exception_handler,
    problem_header,
    query_result,
    to_http_response,
    upload_result,
)
from edge.http.auth import NO_AUTH
from edge.http.dependencies import AnyConnection, AnyRequest, EdgeServices, ServicesDep
from edge.http.problems import problem_for_error
from edge.http.request_input import (
    ANY_PARAMETER,
    PLACEHOLDER_DIGEST,
    is_form,
    open_owner_form,
    read_json,
    store_file_part,
)
from edge.http.responses import file_response
from edge.jobs.service import id_in_use
from edge.jobs.view import Asker
from schemas.asset import DIGEST_SCHEME, guess_media_type
from schemas.credentials import Scope
from schemas.job import FINAL_STATUSES, Job, JobKey, OutputFile, Status, is_token
from schemas.job_view import JobView
from schemas.problems import ProblemError
from schemas.texts import Language

# The vendor's server answers every method with 200; the code in the body says what is wrong.
_any_method = partial(route, http_method=["GET", "POST", "PUT", "PATCH", "DELETE"], status_code=200)
_RESULT_SUFFIX = result_name("")
_SUBMIT_ATTEMPTS_LIMIT = 10  # of one submit, while other submits change the same job

HOLD_TIMEOUT_S = 6.0  # the broker restarts in 1 to 3 s; clients with a time limit of their own wait 10 s or longer
HOLD_RETRY_INTERVAL_S = 0.2
TRANSIENT_CODE = "unavailable"  # the code of every problem that a later attempt may not meet

T = TypeVar("T")
HeygemDep = NamedDependency[HeygemFacade]


@_any_method("/submit")
async def submit(request: AnyRequest, services: ServicesDep, heygem: HeygemDep) -> Response[bytes]:
    """Accept a job under the client's code."""
    if request.method != "POST":
        raise ProblemError("input_invalid", "a submit must be a POST with a JSON body")
    parsed = parse_submit(await read_json(request))
    await retry_while_unavailable(request, partial(_submit_once, request, services, heygem, parsed))
    return to_http_response(ACCEPTED)


async def _submit_once(request: AnyRequest, services: EdgeServices, heygem: HeygemFacade, parsed: EasySubmit) -> None:
    settings = heygem.settings
    owner = await authenticate_owner(request, services, Scope.JOBS_WRITE, settings.owner)
    endpoint = services.endpoints.get(settings.endpoint)
    await services.jobs.validate(build_submission(endpoint, parsed, PLACEHOLDER_DIGEST, PLACEHOLDER_DIGEST))
    await services.readiness.check()  # before files are copied
    audio = await asset_reference(services, settings.data_root, "heygem.data_root", owner, parsed.audio)
    video = await asset_reference(services, settings.data_root, "heygem.data_root", owner, parsed.video)
    key = JobKey(owner, parsed.code)
    async with heygem.result_exporter.expect_result(key):
        await _accept_job(services, heygem, key, build_submission(endpoint, parsed, audio, video))


async def _accept_job(services: EdgeServices, heygem: HeygemFacade, key: JobKey, body: dict[str, Any]) -> None:
    """Accept `body` as a new job, as the existing job, or as the next round of a job that has ended."""
    for _ in range(_SUBMIT_ATTEMPTS_LIMIT):
        submission, is_equivalent = await services.jobs.submit_or_compare(key, body)
        if not submission.replayed:
            return
        if not await _can_resubmit(heygem, submission.entry.record.job, same=is_equivalent):
            if is_equivalent:
                return
            raise id_in_use("conflict")
        if await services.jobs.resubmit(submission.entry, body):
            return
    raise ProblemError("unavailable", "other submits keep changing the job of this code: try again")


async def _can_resubmit(heygem: HeygemFacade, job: Job, *, same: bool) -> bool:
    """Return whether a submit starts the job again. `same`: the submit asks for the same content.

    A job that succeeded with the same content starts again only if its result was deleted. Raises ProblemError
    `unavailable` while the job is being cancelled: it can start again in a moment.
    """
    if job.status is Status.CANCELLING:
        raise ProblemError("unavailable", "the job of this code is being cancelled: try again")
    if same and job.status is Status.SUCCEEDED:
        with translate_errors():
            return await heygem.result_exporter.is_missing(job)
    return job.status in FINAL_STATUSES


async def asset_reference(services: EdgeServices, root: Path | None, setting: str, owner: str, name: str) -> str:
    """Return the native reference for `name`. A file of the shared folder `root` becomes an asset of the owner first.

    `setting` is the name of the setting that shares the folder, for the error if it is unset.
    """
    if name.startswith(DIGEST_SCHEME) or name.lower().startswith(("http://", "https://")):
        return name
    if root is None:
        raise ProblemError("input_invalid", f"no folder is shared ({setting}): name an http(s) URL or sha256:<hex>")
    file = await to_thread.run_sync(open_shared_file, root, name)
    _, sha256, _ = await services.assets.put(owner, file.read_chunks(), None, file.name, guess_media_type(file.name))
    return f"{DIGEST_SCHEME}{sha256}"


@_any_method("/query")
async def query(request: AnyRequest, services: ServicesDep, heygem: HeygemDep) -> Response[bytes]:
    """Return the state of a job, until the job is deleted."""
    owner = await authenticate_owner(request, services, Scope.JOBS_READ, heygem.settings.owner)
    code = request.query_params.get("code")
    if code is None:
        raise FieldMissing("code")
    entry = await _find_job(services, owner, code)
    view = await services.job_views.build(entry, Asker(Language.ZH))
    return to_http_response(query_result(await _query_data(heygem, entry, view)))


async def _find_job(services: EdgeServices, owner: str, code: str) -> VersionedRecord:
    if not is_token(code):
        raise ProblemError("not_found", "no job has this code")
    return await services.jobs.read(JobKey(owner, code))


async def _query_data(heygem: HeygemFacade, entry: VersionedRecord, view: JobView) -> dict[str, Any]:
    """Return the data of a query. A job counts as done once its result is where clients look for it."""
    if view.status is Status.SUCCEEDED:
        with translate_errors():
            state = await heygem.result_exporter.export_state(entry.record.job)
        if state is not ExportState.EXPORTED:
            return exporting_data(view) if state is ExportState.PENDING else missing_result_data(view)
    return job_data(view)


@get("/download/{path:path}", status_code=200)
async def download_result(
    request: AnyRequest, services: ServicesDep, heygem: HeygemDep, path: FromPath[str]
) -> ASGIApp:
    """Return the result. Supports Range."""
    owner = await authenticate_owner(request, services, Scope.JOBS_READ, heygem.settings.owner)
    name = path.removeprefix("/")
    entry = await _find_job(services, owner, name.removesuffix(_RESULT_SUFFIX) if name.endswith(_RESULT_SUFFIX) else "")
    file = result_file(entry.record.job)
    if file is None:
        raise ProblemError("not_found", "the job has no result: /easy/query returns its state")
    return await file_response(request, services, file.sha256, name, file.media_type)


@_any_method("/upload")
async def upload(request: AnyRequest, services: ServicesDep, heygem: HeygemDep) -> Response[bytes]:
    """Store the file of a form as an asset, for a client that does not share a folder with the edge."""
    if request.method != "POST" or not is_form(request):
        raise ProblemError("input_invalid", "an upload must be a POST with a form that has one file")
    owner = await authenticate_owner(request, services, Scope.ASSETS_WRITE, heygem.settings.owner)
    async with open_owner_form(request, services, owner) as form:
        files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
        if len(files) != 1:
            raise ProblemError("input_invalid", f"the form has {len(files)} files: send one")
        (file,) = files
        reference = await store_file_part(services, owner, file)
        return to_http_response(upload_result(reference, file.filename or ""))


async def provide_facade(request: AnyConnection) -> HeygemFacade:
    """Return the facade of the edge that serves the routes."""
    facade: HeygemFacade = request.app.state.heygem
    return facade


def make_router() -> Router:
    """Return the routes, with their own authentication and errors.

    They are not in the OpenAPI document, which cannot describe errors with status 200.
    """
    return Router(
        "/easy",
        route_handlers=[submit, query, download_result, upload],
        dependencies={"heygem": Provide(provide_facade)},
        opt={NO_AUTH: True, ANY_PARAMETER: True},
        exception_handlers={Exception: exception_handler},
        include_in_schema=False,
        request_max_body_size=None,
    )


async def retry_while_unavailable(request: AnyRequest, attempt: Callable[[], Awaitable[T]]) -> T:
    """Repeat `attempt` while it raises `unavailable`, for at most HOLD_TIMEOUT_S or until the client disconnects.

    The vendor's clients give up a video at every answer but "accepted", so a restart of the broker must not reach
    them. The body of `request` must have been read. No attempt is cancelled, so the last one may end later: a request
    to the broker times out after 5 s. Raises the error of the last attempt.
    """
    ends_at = current_time() + HOLD_TIMEOUT_S
    while True:
        try:
            return await attempt()
        except Exception as error:
            problem = error if isinstance(error, ProblemError) else problem_for_known_error(error)
            if problem is None or problem.code != TRANSIENT_CODE:
                raise
            left_s = min(HOLD_RETRY_INTERVAL_S, ends_at - current_time())
            if left_s <= 0 or await wait_for_disconnect(request, left_s):
                raise


async def wait_for_disconnect(request: AnyRequest, within_s: float) -> bool:
    """Wait for `within_s`, or until the client disconnects. Return whether it did."""
    with move_on_after(within_s):
        while (await request.receive())["type"] != "http.disconnect":
            pass
        return True
    return False


SPEECH_WAIT_LIMIT_S = 3600.0  # the client sets no limit, and a host may have to wake first
NOT_ACCEPTED = -1  # the client looks for `code` 0 only


def _respond_200(request: AnyRequest, error: Exception) -> Response[bytes]:
    """Return the response of `preprocess_and_tran` for an exception: the client looks into the body only."""
    return _error_response(error, 200)


def _respond_with_status(request: AnyRequest, error: Exception) -> Response[bytes]:
    """Return the response of `invoke` for an exception: its client takes every body of a 200 for the speech."""
    return _error_response(error, None)


def _error_response(error: Exception, status: int | None) -> Response[bytes]:
    problem = problem_for_error(error)
    body = {"code": NOT_ACCEPTED, "msg": format_problem(problem, Language.ZH)}
    return _json_response(body, status or problem.problem.status, problem_header(problem))


def _json_response(body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response[bytes]:
    return Response(msgspec.json.encode(body), status_code=status, media_type="application/json", headers=headers or {})


@post("/preprocess_and_tran", status_code=200, exception_handlers={Exception: _respond_200})
async def preprocess(request: AnyRequest, services: ServicesDep, heygem: HeygemDep) -> Response[bytes]:
    """Accept a voice: its file must be in the shared folder. Nothing is trained, and nothing is transcribed."""
    await authenticate_owner(request, services, Scope.JOBS_WRITE, heygem.settings.owner)
    name = parse_reference(await read_json(request))
    root = heygem.settings.tts_root
    if root is None:
        raise ProblemError("input_invalid", "no folder of voices is shared: set heygem.tts_root")
    (await to_thread.run_sync(open_shared_file, root, name)).close()
    return _json_response({"code": 0, "asr_format_audio_url": name, "reference_audio_text": ""})


@post("/invoke", status_code=200, exception_handlers={Exception: _respond_with_status})
async def invoke(request: AnyRequest, services: ServicesDep, heygem: HeygemDep) -> ASGIApp:
    """Turn a text into speech with a voice, and return the WAV."""
    owner = await authenticate_owner(request, services, Scope.JOBS_WRITE, heygem.settings.owner)
    speech = parse_speech(await read_json(request))
    entry = await retry_while_unavailable(request, partial(_submit_speech, services, heygem, owner, speech))
    file = await _wait_for_speech(request, services, entry.record.job.key)
    return await file_response(request, services, file.sha256, file.name, file.media_type)


async def _submit_speech(
    services: EdgeServices, heygem: HeygemFacade, owner: str, speech: SpeechRequest
) -> VersionedRecord:
    settings = heygem.settings
    endpoint = services.endpoints.get(settings.tts_endpoint)
    voice = None
    if speech.reference:
        voice = await asset_reference(services, settings.tts_root, "heygem.tts_root", owner, speech.reference)
    return (await services.jobs.submit(owner, build_speech_submission(endpoint, speech, voice))).entry


async def _wait_for_speech(request: AnyRequest, services: EdgeServices, key: JobKey) -> OutputFile:
    """Return the speech. If the client disconnects, or after WAIT_LIMIT_S, the job is cancelled.

    Raises ProblemError: `unavailable` then, `conflict` if the job failed or was cancelled.
    """
    async with anyio.create_task_group() as group:

        async def wait() -> None:
            while True:
                with suppress(ProblemError):  # `unavailable`: the broker restarts, and the job goes on meanwhile
                    await services.event_streams.wait_until_final(key, SPEECH_WAIT_LIMIT_S)
                    group.cancel_scope.cancel()
                await anyio.sleep(HOLD_RETRY_INTERVAL_S)

        group.start_soon(wait)
        await wait_for_disconnect(request, SPEECH_WAIT_LIMIT_S)
        group.cancel_scope.cancel()
    entry = await services.jobs.read(key)
    job = entry.record.job
    if job.status not in FINAL_STATUSES:
        await services.jobs.cancel_unfinished(key)
        raise ProblemError("unavailable", "the speech was not ready in time: send the text again")
    files = () if job.output is None else job.output.files
    speech = next((file for file in files if file.media_type.startswith("audio/")), None)
    if job.status is not Status.SUCCEEDED or speech is None:
        view = await services.job_views.build(entry, Asker(Language.ZH))
        raise ProblemError("conflict", view.message or f"the job {job.id} made no speech: its log says why")
    return speech


def make_speech_router() -> Router:
    """Return the routes, with their own authentication and errors. They are not in the OpenAPI document."""
    return Router(
        TTS_PREFIX.rstrip("/"),
        route_handlers=[preprocess, invoke],
        dependencies={"heygem": Provide(provide_facade)},
        opt={NO_AUTH: True, ANY_PARAMETER: True},
        include_in_schema=False,
    )
