"""Answering with bytes out of the asset store."""

from collections.abc import MutableMapping
from datetime import timedelta
from typing import Any, cast

from litestar.types import ASGIApp
from starlette.datastructures import Headers
from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from edge.http.byte_ranges import ByteRange, RangeNotSatisfiable, is_valid_range, parse_single_range
from edge.http.dependencies import AnyRequest, EdgeServices
from edge.store.port import BLOCK_BYTES, AssetStore, BlobStore, StoredAsset
from schemas.asset import Digest, safe_name
from schemas.problems import ProblemError


async def file_response(request: AnyRequest, parts: EdgeServices, sha256: str, name: str, media_type: str) -> ASGIApp:
    """The file, ranges and revalidation included. Refused not_found when the store has it no more."""
    response = await asset_response(
        parts.store, sha256, name, media_type, cast("MutableMapping[str, Any]", request.scope)
    )
    if response is None:
        raise ProblemError("not_found", "the file is gone from the store: its job must run again to make it anew")
    return cast("ASGIApp", response)  # the two libraries spell the same ASGI types differently


def text_response(text: str) -> ASGIApp:
    """A text as an answer of its own."""
    return cast("ASGIApp", PlainTextResponse(text))


# MERGED edge/store/serve.py: An asset as an HTTP answer: ranges, revalidation, and nothing a browser could mistake
# for a page of the edge.


# Shown in place; everything else is offered for saving. No HTML, no SVG: both can carry scripts.
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

# How long a store's own URL works: a player comes back to it for every jump.
PRESIGNED_URL_TTL = timedelta(hours=1)


class _AssetFileResponse(FileResponse):
    chunk_size = BLOCK_BYTES  # a hop to a thread per 64 KiB halves the speed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """RFC 9110, 14.2: a Range that is malformed or of another unit is ignored, not refused."""
        asked = Headers(scope=scope).get("range")
        if asked is not None and not is_valid_range(asked):
            scope = {**scope, "headers": [(name, value) for name, value in scope["headers"] if name != b"range"]}
        await super().__call__(scope, receive, send)


async def asset_response(
    store: AssetStore, sha256: Digest, name: str, media_type: str, scope: Scope
) -> Response | None:
    """The response to the GET or HEAD in `scope`; None where the store has no such file (the caller says 404).

    200, 206 (one range or several), 304 on If-None-Match, 416. The ETag is the digest, so a cut download may be
    resumed with If-Range whatever happened to the edge meanwhile. A GET of what the store has a URL of its own for is
    led there (307); what is neither there nor a local file is passed through, whole or one range of it.
    """
    stored = await store.stat(sha256)
    if stored is None:
        return None
    headers = {
        "etag": f'"{sha256}"',
        # Private: behind a key. Asked again each time: the same job file may be another one after a retry.
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
    link = await store.presign_url(sha256, PRESIGNED_URL_TTL) if scope["method"] == "GET" else None
    if link is not None:
        return RedirectResponse(link, 307, {"cache-control": "no-store"})
    return _proxied_response(store, stored, file, scope)


def _proxied_response(store: BlobStore, stored: StoredAsset, like: FileResponse, scope: Scope) -> Response:
    asked = Headers(scope=scope)
    fresh = asked.get("if-range") in {None, like.headers["etag"]}
    like.headers["accept-ranges"] = "bytes"
    try:
        span = parse_single_range(asked.get("range") if fresh else None, stored.bytes)
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
    """RFC 9110, section 13.1.2: a list of tags or "*", compared weakly."""
    tags = {tag.strip().removeprefix("W/") for tag in (condition or "").split(",")}
    return "*" in tags or etag in tags
