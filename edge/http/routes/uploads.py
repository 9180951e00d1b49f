"""`/v1/uploads`: resumable uploads (tus 1.0.0). A complete upload becomes an asset.

The first half parses and writes the headers of the protocol (tus.io, "Resumable Upload Protocol 1.0.x").
"""

import base64
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC
from email.utils import format_datetime
from typing import Any

from litestar import Response, delete, patch, post, route
from litestar.exceptions import InternalServerException
from litestar.params import FromPath
from litestar.types import ExceptionHandlersMap

from edge.assets.uploads import Checksum, UploadChunk, UploadParameters
from edge.http import problems
from edge.http.auth import NO_AUTH, require_scope
from edge.http.dependencies import AnyRequest, EdgeServices, OwnerDep, ServicesDep
from edge.http.openapi import CHUNK_MEDIA_TYPE, UPLOADS_PATH, ChunkBody
from edge.store.unfinished_uploads import Upload
from schemas.asset import DIGEST_SCHEME, choose_media_type, is_digest
from schemas.credentials import Scope
from schemas.problems import ProblemError

TUS_VERSION = "1.0.0"
TUS_EXTENSIONS = "creation,creation-with-upload,creation-defer-length,expiration,checksum,termination"
CHECKSUM_ALGORITHMS = ("sha1", "sha256", "sha512", "md5")
ASSET_HEADER = "Lamplighter-Asset"
METADATA_LIMIT_BYTES = 4096
_LENGTH_DIGITS_LIMIT = 18  # no file has a longer size


def check_version(request: AnyRequest) -> None:
    """Raise ProblemError `tus_version` for a client with another version, or without one."""
    if request.headers.get("tus-resumable") != TUS_VERSION:
        raise ProblemError("tus_version", f"send the header Tus-Resumable: {TUS_VERSION}, the only supported version")


def check_chunk_type(request: AnyRequest) -> None:
    """Raise ProblemError `media_type_unknown` for a body that is not a chunk."""
    if request.headers.get("content-type") != CHUNK_MEDIA_TYPE:
        raise ProblemError("media_type_unknown", f"send the header Content-Type: {CHUNK_MEDIA_TYPE}")


def parse_byte_count(headers: Mapping[str, str], name: str) -> int | None:
    """Return the number of bytes in a header; None without the header. Raises ProblemError `input_invalid`."""
    text = headers.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _LENGTH_DIGITS_LIMIT):
        raise ProblemError("input_invalid", f"the header {name} must be a number of bytes")
    return int(text)


def parse_creation(headers: Mapping[str, str]) -> UploadParameters:
    """Return the parameters of a new upload. Raises ProblemError `input_invalid`."""
    length = parse_byte_count(headers, "Upload-Length")
    deferred = headers.get("upload-defer-length")
    if (length is None) == (deferred is None) or deferred not in {None, "1"}:
        raise ProblemError("input_invalid", "send either Upload-Length or Upload-Defer-Length: 1")
    metadata = headers.get("upload-metadata", "")
    fields = _parse_metadata(metadata)
    name = fields.get("filename") or fields.get("name") or "file"
    expected = fields.get("sha256", "").removeprefix(DIGEST_SCHEME).lower() or None
    if expected is not None and not is_digest(expected):
        raise ProblemError(
            "input_invalid", "sha256 in Upload-Metadata must be 64 hex digits, base64-encoded like all values"
        )
    kind = choose_media_type(fields.get("filetype") or fields.get("type"), name)
    return UploadParameters(name=name, media_type=kind, length=length, expected=expected, metadata=metadata)


def _parse_metadata(header: str) -> dict[str, str]:
    """Parse pairs of a name and a base64 value, or a name alone, separated by commas."""
    if len(header) > METADATA_LIMIT_BYTES:
        raise ProblemError("input_invalid", f"Upload-Metadata may have at most {METADATA_LIMIT_BYTES} bytes")
    pairs = (pair.strip().partition(" ") for pair in header.split(",") if pair.strip())
    try:
        return {name: base64.b64decode(value, validate=True).decode() for name, _, value in pairs}
    except ValueError as error:  # not ASCII, not base64, or not UTF-8
        raise ProblemError("input_invalid", "a value in Upload-Metadata is not base64 of UTF-8") from error


def parse_checksum(headers: Mapping[str, str]) -> Checksum | None:
    """Parse `Upload-Checksum: <algorithm> <base64>`. Raises ProblemError `input_invalid`."""
    header = headers.get("upload-checksum")
    if header is None:
        return None
    algorithm, _, value = header.strip().partition(" ")
    try:
        digest = base64.b64decode(value, validate=True)
    except ValueError:  # not ASCII or not base64
        digest = b""
    if algorithm not in CHECKSUM_ALGORITHMS or len(digest) != hashlib.new(algorithm, usedforsecurity=False).digest_size:
        raise ProblemError(
            "input_invalid",
            f"Upload-Checksum must be one of {', '.join(CHECKSUM_ALGORITHMS)}, a space, and the digest in base64",
        )
    return Checksum(algorithm, digest)


def upload_headers(upload: Upload) -> dict[str, str]:
    """Return the headers with the state of an upload."""
    headers = {
        "Tus-Resumable": TUS_VERSION,
        "Upload-Offset": str(upload.offset),
        "Upload-Expires": format_datetime(upload.expires.astimezone(UTC), usegmt=True),
        "Cache-Control": "no-store",
    }
    if upload.length is None:
        headers["Upload-Defer-Length"] = "1"
    else:
        headers["Upload-Length"] = str(upload.length)
    if upload.metadata:
        headers["Upload-Metadata"] = upload.metadata
    if upload.is_stored and upload.final_sha256 is not None:
        headers[ASSET_HEADER] = DIGEST_SCHEME + upload.final_sha256
    return headers


def capability_headers(limit: int) -> dict[str, str]:
    """Return the headers of the response to OPTIONS."""
    return {
        "Tus-Resumable": TUS_VERSION,
        "Tus-Version": TUS_VERSION,
        "Tus-Extension": TUS_EXTENSIONS,
        "Tus-Max-Size": str(limit),
        "Tus-Checksum-Algorithm": ",".join(CHECKSUM_ALGORITHMS),
    }


def handle_tus_exception(request: AnyRequest, error: Any) -> Response[bytes]:
    """Return the problem response, with the headers that tus requires in every response."""
    response = problems.handle_exception(request, error)
    return Response(
        response.content,
        status_code=response.status_code,
        headers={
            **response.headers,
            "Tus-Resumable": TUS_VERSION,
            "Tus-Version": TUS_VERSION,
            "Cache-Control": "no-store",
        },
        media_type=response.media_type,
    )


UPLOAD_PATH = "/v1/uploads/{upload_id:str}"
GUARDS = [require_scope(Scope.ASSETS_WRITE)]
EXCEPTION_HANDLERS: ExceptionHandlersMap = {Exception: handle_tus_exception}


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
        size=parse_byte_count(headers, "Content-Length"),
        length=length,
        checksum=parse_checksum(headers),
    )


@route(
    [UPLOADS_PATH, UPLOAD_PATH], http_method=["OPTIONS"], status_code=204, opt={NO_AUTH: True}, include_in_schema=False
)
async def upload_capabilities(services: ServicesDep) -> Response[None]:
    """Return the supported tus version, extensions and size limit."""
    return Response(None, status_code=204, headers=capability_headers(services.uploads.limit))


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
    check_version(request)
    parameters = parse_creation(request.headers)
    has_chunk = parameters.length == 0 or request.headers.get("content-type") == CHUNK_MEDIA_TYPE
    chunk = _read_chunk(request, 0, None) if has_chunk else None  # may raise, so before the upload is created
    upload = await services.uploads.create(owner, parameters)
    location = f"{UPLOADS_PATH}/{upload.id}"
    if chunk is not None:
        upload = await _append_first(services, owner, upload.id, chunk)
    return Response(None, status_code=201, headers={**upload_headers(upload), "Location": location})


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
    check_version(request)
    return Response(None, status_code=200, headers=upload_headers(await services.uploads.status(owner, upload_id)))


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
    check_version(request)
    check_chunk_type(request)
    offset = parse_byte_count(request.headers, "Upload-Offset")
    if offset is None:
        raise ProblemError("input_invalid", "the header Upload-Offset is missing: send the offset of this chunk")
    chunk = _read_chunk(request, offset, parse_byte_count(request.headers, "Upload-Length"))
    upload: Upload = await services.uploads.append(owner, upload_id, chunk)
    return Response(None, status_code=204, headers=upload_headers(upload))


async def _delete(request: AnyRequest, services: EdgeServices, owner: str, upload_id: str) -> Response[None]:
    check_version(request)
    await services.uploads.remove(owner, upload_id)
    return Response(None, status_code=204, headers={"Tus-Resumable": TUS_VERSION})


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
