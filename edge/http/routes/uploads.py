"""`/v1/uploads`: files that arrive in pieces and over cuts (tus 1.0.0). A finished upload is an asset."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

from litestar import Response, delete, patch, post, route
from litestar.exceptions import InternalServerException
from litestar.params import FromPath
from litestar.types import ExceptionHandlersMap

from edge.assets.uploads import UploadChunk
from edge.http.auth import NO_AUTH, require_scope
from edge.http.dependencies import AnyRequest, EdgeServices, OwnerDep, ServicesDep
from edge.http.openapi import CHUNK_MEDIA_TYPE, ChunkBody
from edge.http.routes import tus
from edge.store.upload_state import Upload
from schemas.auth import Scope
from schemas.problems import ProblemError

UPLOADS_PATH = "/v1/uploads"
UPLOAD_PATH = "/v1/uploads/{upload_id:str}"
GUARDS = [require_scope(Scope.ASSETS_WRITE)]
EXCEPTION_HANDLERS: ExceptionHandlersMap = {Exception: tus.handle_tus_exception}


async def _body_until_disconnect(request: AnyRequest) -> AsyncIterator[bytes]:
    """The body as far as it comes: what a cut connection brought counts."""
    with suppress(InternalServerException):  # how Litestar says that the client is gone
        async for chunk in request.stream():
            yield chunk


def _read_chunk(request: AnyRequest, offset: int, length: int | None) -> UploadChunk:
    headers = request.headers
    return UploadChunk(
        offset=offset,
        chunks=_body_until_disconnect(request),
        size=tus.parse_byte_count(headers, "Content-Length"),
        length=length,
        checksum=tus.parse_checksum(headers),
    )


@route(
    [UPLOADS_PATH, UPLOAD_PATH], http_method=["OPTIONS"], status_code=204, opt={NO_AUTH: True}, include_in_schema=False
)
async def upload_capabilities(parts: ServicesDep) -> Response[None]:
    """What of tus is spoken here."""
    return Response(None, status_code=204, headers=tus.capability_headers(parts.uploads.limit))


@post(
    UPLOADS_PATH,
    status_code=201,
    guards=GUARDS,
    exception_handlers=EXCEPTION_HANDLERS,
    operation_class=ChunkBody,
    request_max_body_size=None,
)
async def create_upload(request: AnyRequest, parts: ServicesDep, owner: OwnerDep) -> Response[None]:
    """Begin an upload; its URL is in `Location`. A body is its first piece ("creation-with-upload")."""
    tus.check_version(request)
    upload = await parts.uploads.create(owner, tus.parse_creation(request.headers))
    location = f"{UPLOADS_PATH}/{upload.id}"
    if upload.length == 0 or request.headers.get("content-type") == CHUNK_MEDIA_TYPE:
        upload = await parts.uploads.append(owner, upload.id, _read_chunk(request, 0, None))
    return Response(None, status_code=201, headers={**tus.upload_headers(upload), "Location": location})


@route(UPLOAD_PATH, http_method=["HEAD"], status_code=200, guards=GUARDS, exception_handlers=EXCEPTION_HANDLERS)
async def read_upload(
    request: AnyRequest, parts: ServicesDep, owner: OwnerDep, upload_id: FromPath[str]
) -> Response[None]:
    """Where the upload stands: go on at `Upload-Offset`."""
    tus.check_version(request)
    return Response(None, status_code=200, headers=tus.upload_headers(await parts.uploads.status(owner, upload_id)))


@patch(
    UPLOAD_PATH,
    status_code=204,
    guards=GUARDS,
    exception_handlers=EXCEPTION_HANDLERS,
    operation_class=ChunkBody,
    request_max_body_size=None,
)
async def append_upload(
    request: AnyRequest, parts: ServicesDep, owner: OwnerDep, upload_id: FromPath[str]
) -> Response[None]:
    """A piece of the file, from `Upload-Offset` on. With the last one `Lamplighter-Asset` names what it became."""
    return await _append(request, parts, owner, upload_id)


@delete(UPLOAD_PATH, status_code=204, guards=GUARDS, exception_handlers=EXCEPTION_HANDLERS)
async def delete_upload(
    request: AnyRequest, parts: ServicesDep, owner: OwnerDep, upload_id: FromPath[str]
) -> Response[None]:
    """End the upload and forget what came of it; an asset that it became stays."""
    return await _delete(request, parts, owner, upload_id)


async def _append(request: AnyRequest, parts: EdgeServices, owner: str, upload_id: str) -> Response[None]:
    tus.check_version(request)
    tus.check_chunk_type(request)
    offset = tus.parse_byte_count(request.headers, "Upload-Offset")
    if offset is None:
        raise ProblemError("input_invalid", "the header Upload-Offset is missing: say where this piece belongs")
    piece = _read_chunk(request, offset, tus.parse_byte_count(request.headers, "Upload-Length"))
    upload: Upload = await parts.uploads.append(owner, upload_id, piece)
    return Response(None, status_code=204, headers=tus.upload_headers(upload))


async def _delete(request: AnyRequest, parts: EdgeServices, owner: str, upload_id: str) -> Response[None]:
    tus.check_version(request)
    await parts.uploads.remove(owner, upload_id)
    return Response(None, status_code=204, headers={"Tus-Resumable": tus.TUS_VERSION})


# For clients whose proxies let only GET and POST through.
_OVERRIDES: dict[str, Callable[[AnyRequest, EdgeServices, str, str], Awaitable[Response[None]]]] = {
    "PATCH": _append,
    "DELETE": _delete,
}


@post(
    UPLOAD_PATH,
    status_code=204,
    guards=GUARDS,
    exception_handlers=EXCEPTION_HANDLERS,
    request_max_body_size=None,
    include_in_schema=False,
)
async def override_method(
    request: AnyRequest, parts: ServicesDep, owner: OwnerDep, upload_id: FromPath[str]
) -> Response[None]:
    """The method that `X-HTTP-Method-Override` names."""
    method = request.headers.get("x-http-method-override", "")
    if method not in _OVERRIDES:
        raise ProblemError("input_invalid", "POST here needs X-HTTP-Method-Override: PATCH or DELETE")
    return await _OVERRIDES[method](request, parts, owner, upload_id)


ROUTES = (
    upload_capabilities,
    create_upload,
    read_upload,
    append_upload,
    delete_upload,
    override_method,
)
