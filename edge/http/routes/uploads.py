"""`/v1/uploads`: resumable uploads (tus 1.0.0). A complete upload becomes an asset."""

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
    """Yield the body up to its end or the end of the connection. All received bytes count."""
    with suppress(InternalServerException):  # Litestar raises it when the client disconnects
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
async def upload_capabilities(services: ServicesDep) -> Response[None]:
    """Return the supported tus version, extensions and size limit."""
    return Response(None, status_code=204, headers=tus.capability_headers(services.uploads.limit))


@post(
    UPLOADS_PATH,
    status_code=201,
    guards=GUARDS,
    exception_handlers=EXCEPTION_HANDLERS,
    operation_class=ChunkBody,
    request_max_body_size=None,
)
async def create_upload(request: AnyRequest, services: ServicesDep, owner: OwnerDep) -> Response[None]:
    """Create an upload. `Location` has its URL. A body is the first chunk (creation-with-upload)."""
    tus.check_version(request)
    parameters = tus.parse_creation(request.headers)
    has_chunk = parameters.length == 0 or request.headers.get("content-type") == CHUNK_MEDIA_TYPE
    chunk = _read_chunk(request, 0, None) if has_chunk else None  # may raise, so before the upload is created
    upload = await services.uploads.create(owner, parameters)
    location = f"{UPLOADS_PATH}/{upload.id}"
    if chunk is not None:
        upload = await _append_first(services, owner, upload.id, chunk)
    return Response(None, status_code=201, headers={**tus.upload_headers(upload), "Location": location})


async def _append_first(services: EdgeServices, owner: str, upload_id: str, chunk: UploadChunk) -> Upload:
    """Append the body of a creation. If that fails, remove the upload: the client never learns its URL."""
    try:
        return await services.uploads.append(owner, upload_id, chunk)
    except ProblemError:
        with suppress(ProblemError):  # a digest mismatch has already removed it
            await services.uploads.remove(owner, upload_id)
        raise


@route(UPLOAD_PATH, http_method=["HEAD"], status_code=200, guards=GUARDS, exception_handlers=EXCEPTION_HANDLERS)
async def read_upload(
    request: AnyRequest, services: ServicesDep, owner: OwnerDep, upload_id: FromPath[str]
) -> Response[None]:
    """Return the state of an upload. The client continues at `Upload-Offset`."""
    tus.check_version(request)
    return Response(None, status_code=200, headers=tus.upload_headers(await services.uploads.status(owner, upload_id)))


@patch(
    UPLOAD_PATH,
    status_code=204,
    guards=GUARDS,
    exception_handlers=EXCEPTION_HANDLERS,
    operation_class=ChunkBody,
    request_max_body_size=None,
)
async def append_upload(
    request: AnyRequest, services: ServicesDep, owner: OwnerDep, upload_id: FromPath[str]
) -> Response[None]:
    """Append a chunk at `Upload-Offset`. After the last chunk `Lamplighter-Asset` has the digest of the asset."""
    return await _append(request, services, owner, upload_id)


@delete(UPLOAD_PATH, status_code=204, guards=GUARDS, exception_handlers=EXCEPTION_HANDLERS)
async def delete_upload(
    request: AnyRequest, services: ServicesDep, owner: OwnerDep, upload_id: FromPath[str]
) -> Response[None]:
    """Delete an upload. An asset that it has become remains."""
    return await _delete(request, services, owner, upload_id)


async def _append(request: AnyRequest, services: EdgeServices, owner: str, upload_id: str) -> Response[None]:
    tus.check_version(request)
    tus.check_chunk_type(request)
    offset = tus.parse_byte_count(request.headers, "Upload-Offset")
    if offset is None:
        raise ProblemError("input_invalid", "the header Upload-Offset is missing: send the offset of this chunk")
    chunk = _read_chunk(request, offset, tus.parse_byte_count(request.headers, "Upload-Length"))
    upload: Upload = await services.uploads.append(owner, upload_id, chunk)
    return Response(None, status_code=204, headers=tus.upload_headers(upload))


async def _delete(request: AnyRequest, services: EdgeServices, owner: str, upload_id: str) -> Response[None]:
    tus.check_version(request)
    await services.uploads.remove(owner, upload_id)
    return Response(None, status_code=204, headers={"Tus-Resumable": tus.TUS_VERSION})


# For clients behind proxies that allow only GET and POST.
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
    request: AnyRequest, services: ServicesDep, owner: OwnerDep, upload_id: FromPath[str]
) -> Response[None]:
    """Handle the method in `X-HTTP-Method-Override`."""
    method = request.headers.get("x-http-method-override", "")
    if method not in _OVERRIDES:
        raise ProblemError(
            "input_invalid", "a POST to this path needs the header X-HTTP-Method-Override: PATCH or DELETE"
        )
    return await _OVERRIDES[method](request, services, owner, upload_id)


ROUTES = (
    upload_capabilities,
    create_upload,
    read_upload,
    append_upload,
    delete_upload,
    override_method,
)
