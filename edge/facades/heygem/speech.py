"""The vendor's speech server: `preprocess_and_tran` and `invoke`, which the desktop client calls.

The client calls the first once for each voice and keeps what it answers. The second turns a text into speech, and its
response is the WAV itself: the request waits for a job. If its client disconnects, no client can fetch the speech any
more, so the job is cancelled.
"""

from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import msgspec
from anyio import to_thread
from litestar import Response, Router, post
from litestar.di import Provide
from litestar.types import ASGIApp

from bus.interface import VersionedRecord
from edge.core.messages import format_problem
from edge.facades.heygem.auth import TTS_PREFIX, authenticate_owner
from edge.facades.heygem.facade import HeygemFacade
from edge.facades.heygem.mapping import SpeechRequest, build_speech_submission, parse_reference, parse_speech
from edge.facades.heygem.responses import problem_header
from edge.facades.heygem.routes import (
    HOLD_RETRY_INTERVAL_S,
    HeygemDep,
    asset_reference,
    provide_facade,
    retry_while_unavailable,
    wait_for_disconnect,
)
from edge.facades.heygem.shared_dir import open_shared_file
from edge.http.auth import NO_AUTH
from edge.http.dependencies import AnyRequest, EdgeServices, ServicesDep
from edge.http.problems import problem_for_error
from edge.http.query_parameters import ANY_PARAMETER
from edge.http.request_body import read_json
from edge.http.responses import file_response
from edge.jobs.view import Asker
from schemas.auth import Scope
from schemas.ids import JobKey
from schemas.job import OutputFile
from schemas.problems import ProblemError
from schemas.status import FINAL_STATUSES, Status
from schemas.texts import Language

WAIT_LIMIT_S = 3600.0  # the client sets no limit, and a host may have to wake first
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
    entry = await retry_while_unavailable(request, partial(_submit, services, heygem, owner, speech))
    file = await _wait_for_speech(request, services, entry.record.job.key)
    return await file_response(request, services, file.sha256, file.name, file.media_type)


async def _submit(services: EdgeServices, heygem: HeygemFacade, owner: str, speech: SpeechRequest) -> VersionedRecord:
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
                    await services.event_streams.wait_until_final(key, WAIT_LIMIT_S)
                    group.cancel_scope.cancel()
                await anyio.sleep(HOLD_RETRY_INTERVAL_S)

        group.start_soon(wait)
        await wait_for_disconnect(request, WAIT_LIMIT_S)
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


def make_router() -> Router:
    """Return the routes, with their own authentication and errors. They are not in the OpenAPI document."""
    return Router(
        TTS_PREFIX.rstrip("/"),
        route_handlers=[preprocess, invoke],
        dependencies={"heygem": Provide(provide_facade)},
        opt={NO_AUTH: True, ANY_PARAMETER: True},
        include_in_schema=False,
    )
