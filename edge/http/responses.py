"""Send assets as HTTP responses: ranges, revalidation, and no content type that a browser treats as a page.

Starlette answers the Range header (RFC 9110, section 14) for local files, and this module for other assets.
"""

import re
from collections.abc import MutableMapping
from datetime import timedelta
from typing import Any, NamedTuple, cast

from litestar.types import ASGIApp
from starlette.datastructures import Headers
from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from edge.http.dependencies import AnyRequest, EdgeServices
from edge.store.port import BLOCK_BYTES, AssetStore, BlobStore, StoredAsset
from schemas.asset import Digest, safe_name
from schemas.problems import ProblemError

# No file has a size of more than 18 digits.
_RANGE_PATTERN = r"(\d{1,18}-\d{0,18}|-\d{1,18})"
_RANGE_LIST_PATTERN = re.compile(rf"bytes=\s*{_RANGE_PATTERN}(\s*,\s*{_RANGE_PATTERN})*\s*\Z", re.ASCII | re.IGNORECASE)


class ByteRange(NamedTuple):
    """Bytes from `start` to before `stop`."""

    start: int
    stop: int


class RangeNotSatisfiable(Exception):
    """The range lies outside the file (416)."""


def is_valid_range(header: str) -> bool:
    """Return whether the header is well-formed. A malformed one is ignored, not rejected (section 14.2)."""
    if not _RANGE_LIST_PATTERN.match(header):
        return False
    ends = (one.strip().split("-") for one in header.partition("=")[2].split(","))
    return all(not (first and last) or int(first) <= int(last) for first, last in ends)


def parse_single_range(header: str | None, size: int) -> ByteRange | None:
    """Return the range of the header, cut to `size`. Raises RangeNotSatisfiable.

    None stands for the whole file: no range, several ranges, or a malformed header.
    """
    if header is None or "," in header or not is_valid_range(header):
        return None
    first, last = header.partition("=")[2].strip().split("-")
    stop = min(int(last) + 1, size) if first and last else size
    span = ByteRange(int(first) if first else max(0, size - int(last)), stop)
    if span.start >= size or span.start >= span.stop:
        raise RangeNotSatisfiable
    return span


async def file_response(
    request: AnyRequest, services: EdgeServices, sha256: str, name: str, media_type: str
) -> ASGIApp:
    """Return the response with the file. Raises ProblemError `not_found` if the store no longer has it."""
    response = await asset_response(
        services.store, sha256, name, media_type, cast("MutableMapping[str, Any]", request.scope)
    )
    if response is None:
        raise ProblemError("not_found", "the file was deleted from the store: run its job again to recreate it")
    return cast("ASGIApp", response)  # the two libraries spell the same ASGI types differently


def text_response(text: str) -> ASGIApp:
    """Return `text` as a plain text response, without ranges."""
    return cast("ASGIApp", PlainTextResponse(text))


# Types that a browser shows inline; all others are downloads. HTML and SVG are not here: both can contain scripts.
_INLINE_MEDIA_TYPES = (
    "video/",
    "audio/",
    "image/png",
    "image/jpeg",
    "image/gif",
    "image/webp",
    "text/plain",
    "application/json",
)

# A player requests the URL again for every seek.
PRESIGNED_URL_TTL = timedelta(hours=1)


class _AssetFileResponse(FileResponse):
    chunk_size = BLOCK_BYTES  # the default of 64 KiB per thread call halves the throughput

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ignore a Range that is malformed or of another unit, as RFC 9110, section 14.2, requires."""
        header = Headers(scope=scope).get("range")
        if header is not None and not is_valid_range(header):
            scope = {**scope, "headers": [(name, value) for name, value in scope["headers"] if name != b"range"]}
        await super().__call__(scope, receive, send)


async def asset_response(
    store: AssetStore, sha256: Digest, name: str, media_type: str, scope: Scope
) -> Response | None:
    """Return the response to the GET or HEAD in `scope`; None if the store does not have the file.

    The status is 200, 206 (one or several ranges), 304 (If-None-Match) or 416. The ETag is the digest, so a client
    can resume a download with If-Range after a restart of the edge. If the store can presign a URL, a GET is
    redirected to it (307). A remote asset without such a URL is proxied, whole or as one range.
    """
    stored = await store.stat(sha256)
    if stored is None:
        return None
    headers = {
        "etag": f'"{sha256}"',
        # Private: the URL needs a key. No-cache: after a retry of the job, the same URL may return another file.
        "cache-control": "private, no-cache",
        "x-content-type-options": "nosniff",
    }
    if _etag_matches(Headers(scope=scope).get("if-none-match"), headers["etag"]):
        return Response(status_code=304, headers=headers)
    file = _AssetFileResponse(
        stored.path or "",
        headers=headers,
        media_type=media_type,
        filename=safe_name(name),
        content_disposition_type="inline" if media_type.startswith(_INLINE_MEDIA_TYPES) else "attachment",
    )
    if stored.path:
        return file
    url = await store.presign_url(sha256, PRESIGNED_URL_TTL) if scope["method"] == "GET" else None
    if url is not None:
        return RedirectResponse(url, 307, {"cache-control": "no-store"})
    return _proxied_response(store, stored, file, scope)


def _proxied_response(store: BlobStore, stored: StoredAsset, like: FileResponse, scope: Scope) -> Response:
    request_headers = Headers(scope=scope)
    is_current = request_headers.get("if-range") in {None, like.headers["etag"]}
    like.headers["accept-ranges"] = "bytes"
    try:
        span = parse_single_range(request_headers.get("range") if is_current else None, stored.bytes)
    except RangeNotSatisfiable:
        return Response(status_code=416, headers={**like.headers, "content-range": f"bytes */{stored.bytes}"})
    start, stop = span or ByteRange(0, stored.bytes)
    like.headers["content-length"] = str(stop - start)
    if span is not None:
        like.headers["content-range"] = f"bytes {start}-{stop - 1}/{stored.bytes}"
    status = 200 if span is None else 206
    if scope["method"] == "HEAD":
        return Response(status_code=status, headers=like.headers)
    return StreamingResponse(store.read(stored.sha256, start, stop), status, like.headers)


def _etag_matches(condition: str | None, etag: str) -> bool:
    """Return whether If-None-Match names `etag`: a list of tags or "*", compared weakly (RFC 9110, 13.1.2)."""
    tags = {tag.strip().removeprefix("W/") for tag in (condition or "").split(",")}
    return "*" in tags or etag in tags
