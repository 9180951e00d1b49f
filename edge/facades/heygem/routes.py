"""`/easy/submit`, `/easy/query` and `/easy/download`: the vendor's words in, the services' jobs behind."""

from functools import partial
from typing import Any

from anyio import to_thread
from litestar import Response, Router, get, route
from litestar.params import FromPath
from litestar.types import ASGIApp

from bus.port import Entry
from edge.auth.keys import OPEN
from edge.facades.heygem.answers import ACCEPTED, explained, found, send
from edge.facades.heygem.callers import caller
from edge.facades.heygem.folder import open_named
from edge.facades.heygem.holding import hold
from edge.facades.heygem.placing import Place, result_of
from edge.facades.heygem.translation import (
    Asked,
    FieldMissing,
    described,
    lost,
    read,
    result_name,
    storing,
    submission,
)
from edge.parts import Parts
from edge.routes.bodies import NOT_YET, read_json
from edge.routes.files import download
from edge.routes.given import AnyRequest, Services
from edge.services.messages import Language
from edge.services.refusals import refusing
from edge.services.sameness import submit_under
from edge.services.view import Asker
from schemas.access import Scope
from schemas.asset import SCHEME, media_type
from schemas.errors import Refused
from schemas.job import Job, JobKey
from schemas.view import JobView
from schemas.words import FINAL, Status, is_token

# Whatever the method, the answer is 200 and says by its code what is wrong.
_every = partial(route, http_method=["GET", "POST", "PUT", "PATCH", "DELETE"], status_code=200)
_SUFFIX = result_name("")
_TRIES = 10  # of a submit that others are faster than


@_every("/submit")
async def submit(request: AnyRequest, parts: Services) -> Response[bytes]:
    """Accept a job under the client's code."""
    if request.method != "POST":
        raise Refused("input_invalid", "a submit is a POST with a JSON body")
    asked = read(await read_json(request))
    await hold(request, partial(_place, request, parts, asked))
    return send(ACCEPTED)


async def _place(request: AnyRequest, parts: Parts, asked: Asked) -> None:
    owner = await caller(request, parts, Scope.JOBS_WRITE)
    endpoint = parts.catalog.get(parts.settings.heygem.endpoint)
    await parts.intake.vet(submission(endpoint, asked, NOT_YET, NOT_YET))
    await parts.gate.check()  # before files are copied
    audio = await _named(parts, owner, asked.audio)
    video = await _named(parts, owner, asked.video)
    key = JobKey(owner, asked.code)
    async with parts.placing.expecting(key):
        await _submit(parts, key, submission(endpoint, asked, audio, video))


async def _submit(parts: Parts, key: JobKey, body: dict[str, Any]) -> None:
    """Accept `body`: as a new job, as the job that is there, or as the next round of one that has ended."""
    for _ in range(_TRIES):
        taken: Refused | None = None
        known: Entry | None
        try:
            accepted = await submit_under(parts.intake, parts.bus.records, parts.catalog, key, body)
        except Refused as refused:
            if refused.code != "conflict":
                raise
            taken = refused
            with refusing():
                known = await parts.bus.records.read(key)
        else:
            if not accepted.replayed:
                return
            known = accepted.entry
        if known is not None and not await _is_over(parts, known.recorded.job, same=taken is None):
            if taken is not None:
                raise taken
            return
        if known is not None and await parts.intake.submit_again(known, body):
            return
    raise Refused("unavailable", "others keep submitting under this code at the same time: try again")


async def _is_over(parts: Parts, job: Job, *, same: bool) -> bool:
    """Whether a submit begins the job again; `same`: it asks for the same content.

    What a query tells as done is done when the content is the same. Raises Refused `unavailable` while the job is
    being cancelled: it can be begun again in a moment.
    """
    if job.status is Status.CANCELLING:
        raise Refused("unavailable", "the job of this code is being cancelled: try again")
    if same and job.status is Status.SUCCEEDED:
        with refusing():
            return await parts.placing.is_gone(job)
    return job.status in FINAL


async def _named(parts: Parts, owner: str, name: str) -> str:
    """What a native submit calls the file; one of the shared folder is kept as the owner's asset first."""
    if name.startswith(SCHEME) or name.lower().startswith(("http://", "https://")):
        return name
    root = parts.settings.heygem.data_root
    if root is None:
        raise Refused("input_invalid", "no folder is shared (heygem.data_root): name an http(s) URL or sha256:<hex>")
    file = await to_thread.run_sync(open_named, root, name)
    _, sha256, _ = await parts.assets.put(owner, file.chunks(), None, file.name, media_type(file.name))
    return f"{SCHEME}{sha256}"


@_every("/query")
async def query(request: AnyRequest, parts: Services) -> Response[bytes]:
    """How a job stands; what has ended is told for as long as the job is kept."""
    owner = await caller(request, parts, Scope.JOBS_READ)
    code = request.query_params.get("code")
    if code is None:
        raise FieldMissing("code")
    entry = await _found(parts, owner, code)
    view = await parts.viewer.job(entry, Asker(Language.ZH))
    return send(found(await _told(parts, entry, view)))


async def _found(parts: Parts, owner: str, code: str) -> Entry:
    if not is_token(code):
        raise Refused("not_found", "no job has such a code")
    return await parts.intake.read(JobKey(owner, code))


async def _told(parts: Parts, entry: Entry, view: JobView) -> dict[str, Any]:
    """Done is told when the result is where clients look for it, never before."""
    if view.status is Status.SUCCEEDED:
        with refusing():
            place = await parts.placing.where(entry.recorded.job)
        if place is not Place.THERE:
            return storing(view) if place is Place.COMING else lost(view)
    return described(view)


@get("/download/{path:path}", status_code=200)
async def fetch(request: AnyRequest, parts: Services, path: FromPath[str]) -> ASGIApp:
    """The result, with Range."""
    owner = await caller(request, parts, Scope.JOBS_READ)
    name = path.removeprefix("/")
    entry = await _found(parts, owner, name.removesuffix(_SUFFIX) if name.endswith(_SUFFIX) else "")
    file = result_of(entry.recorded.job)
    if file is None:
        raise Refused("not_found", "the job has no result: ask /easy/query how it stands")
    return await download(request, parts, file.sha256, name, file.media_type)


def router() -> Router:
    """The facade, with an authentication and errors of its own. OpenAPI has no words for what always answers 200."""
    return Router(
        "/easy",
        route_handlers=[submit, query, fetch],
        opt={OPEN: True},
        exception_handlers={Exception: explained},
        include_in_schema=False,
        request_max_body_size=None,
    )
