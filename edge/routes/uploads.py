"""`/v1/uploads`: files that arrive in pieces and over cuts (tus 1.0.0). A finished upload is an asset."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

from litestar import Response, delete, patch, post, route
from litestar.exceptions import InternalServerException
from litestar.params import FromPath
from litestar.types import ExceptionHandlersMap

from edge.auth.keys import OPEN, needs
from edge.parts import Parts
from edge.routes import tus
from edge.routes.documents import PIECE_TYPE, PieceBody
from edge.routes.given import AnyRequest, Owner, Services
from edge.services.pieces import Piece
from edge.store.partial import Upload
from schemas.access import Scope
from schemas.errors import Refused

PATH = "/v1/uploads"
ONE = "/v1/uploads/{upload_id:str}"
GUARDS = [needs(Scope.ASSETS_WRITE)]
WRONG: ExceptionHandlersMap = {Exception: tus.refused}


async def _until_cut(request: AnyRequest) -> AsyncIterator[bytes]:
    """The body as far as it comes: what a cut connection brought counts."""
    with suppress(InternalServerException):  # how Litestar says that the client is gone
        async for chunk in request.stream():
            yield chunk


def _piece(request: AnyRequest, offset: int, length: int | None) -> Piece:
    headers = request.headers
    return Piece(
        offset=offset,
        chunks=_until_cut(request),
        size=tus.number(headers, "Content-Length"),
        length=length,
        checksum=tus.checksum(headers),
    )


@route([PATH, ONE], http_method=["OPTIONS"], status_code=204, opt={OPEN: True}, include_in_schema=False)
async def upload_abilities(parts: Services) -> Response[None]:
    """What of tus is spoken here."""
    return Response(None, status_code=204, headers=tus.abilities(parts.uploads.limit))


@post(
    PATH,
    status_code=201,
    guards=GUARDS,
    exception_handlers=WRONG,
    operation_class=PieceBody,
    request_max_body_size=None,
)
async def create_upload(request: AnyRequest, parts: Services, owner: Owner) -> Response[None]:
    """Begin an upload; its URL is in `Location`. A body is its first piece ("creation-with-upload")."""
    tus.check_version(request)
    upload = await parts.uploads.create(owner, tus.wanted(request.headers))
    location = f"{PATH}/{upload.id}"
    if upload.length == 0 or request.headers.get("content-type") == PIECE_TYPE:
        upload = await parts.uploads.append(owner, upload.id, _piece(request, 0, None))
    return Response(None, status_code=201, headers={**tus.told(upload), "Location": location})


@route(ONE, http_method=["HEAD"], status_code=200, guards=GUARDS, exception_handlers=WRONG)
async def read_upload(request: AnyRequest, parts: Services, owner: Owner, upload_id: FromPath[str]) -> Response[None]:
    """Where the upload stands: go on at `Upload-Offset`."""
    tus.check_version(request)
    return Response(None, status_code=200, headers=tus.told(await parts.uploads.look(owner, upload_id)))


@patch(
    ONE,
    status_code=204,
    guards=GUARDS,
    exception_handlers=WRONG,
    operation_class=PieceBody,
    request_max_body_size=None,
)
async def append_upload(request: AnyRequest, parts: Services, owner: Owner, upload_id: FromPath[str]) -> Response[None]:
    """A piece of the file, from `Upload-Offset` on. With the last one `Lamplighter-Asset` names what it became."""
    return await _append(request, parts, owner, upload_id)


@delete(ONE, status_code=204, guards=GUARDS, exception_handlers=WRONG)
async def delete_upload(request: AnyRequest, parts: Services, owner: Owner, upload_id: FromPath[str]) -> Response[None]:
    """End the upload and forget what came of it; an asset that it became stays."""
    return await _delete(request, parts, owner, upload_id)


async def _append(request: AnyRequest, parts: Parts, owner: str, upload_id: str) -> Response[None]:
    tus.check_version(request)
    tus.check_piece_type(request)
    offset = tus.number(request.headers, "Upload-Offset")
    if offset is None:
        raise Refused("input_invalid", "the header Upload-Offset is missing: say where this piece belongs")
    piece = _piece(request, offset, tus.number(request.headers, "Upload-Length"))
    upload: Upload = await parts.uploads.append(owner, upload_id, piece)
    return Response(None, status_code=204, headers=tus.told(upload))


async def _delete(request: AnyRequest, parts: Parts, owner: str, upload_id: str) -> Response[None]:
    tus.check_version(request)
    await parts.uploads.remove(owner, upload_id)
    return Response(None, status_code=204, headers={"Tus-Resumable": tus.VERSION})


# For clients whose proxies let only GET and POST through.
_OVERRIDDEN: dict[str, Callable[[AnyRequest, Parts, str, str], Awaitable[Response[None]]]] = {
    "PATCH": _append,
    "DELETE": _delete,
}


@post(
    ONE,
    status_code=204,
    guards=GUARDS,
    exception_handlers=WRONG,
    request_max_body_size=None,
    include_in_schema=False,
)
async def override(request: AnyRequest, parts: Services, owner: Owner, upload_id: FromPath[str]) -> Response[None]:
    """The method that `X-HTTP-Method-Override` names."""
    method = request.headers.get("x-http-method-override", "")
    if method not in _OVERRIDDEN:
        raise Refused("input_invalid", "POST here needs X-HTTP-Method-Override: PATCH or DELETE")
    return await _OVERRIDDEN[method](request, parts, owner, upload_id)


ROUTES = (
    upload_abilities,
    create_upload,
    read_upload,
    append_upload,
    delete_upload,
    override,
)
