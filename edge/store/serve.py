"""An asset as an HTTP answer: ranges, revalidation, and nothing a browser could mistake for a page of the edge."""

import re

from starlette.datastructures import Headers
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from edge.store.port import BLOCK, Store, Stored
from schemas.asset import Digest, safe_name

# Shown in place; everything else is offered for saving. No HTML, no SVG: both can carry scripts.
_SHOWN = ("video/", "audio/", "image/png", "image/jpeg", "image/gif", "image/webp", "text/plain", "application/json")

# Eighteen digits are more than any file has.
_RANGE = r"(\d{1,18}-\d{0,18}|-\d{1,18})"
_RANGES = re.compile(rf"bytes=\s*{_RANGE}(\s*,\s*{_RANGE})*\s*\Z", re.ASCII | re.IGNORECASE)


class _File(FileResponse):
    chunk_size = BLOCK  # a hop to a thread per 64 KiB halves the speed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """RFC 9110, 14.2: a Range that is malformed or of another unit is ignored, not refused."""
        asked = Headers(scope=scope).get("range")
        if asked is not None and not _usable(asked):
            scope = {**scope, "headers": [(name, value) for name, value in scope["headers"] if name != b"range"]}
        await super().__call__(scope, receive, send)


def _usable(asked: str) -> bool:
    if not _RANGES.match(asked):
        return False
    ends = (one.strip().split("-") for one in asked.partition("=")[2].split(","))
    return all(not (first and last) or int(first) <= int(last) for first, last in ends)


async def answer(store: Store, sha256: Digest, name: str, media_type: str, scope: Scope) -> Response | None:
    """The response to the GET or HEAD in `scope`; None where the store has no such file (the caller says 404).

    200, 206 (one range or several), 304 on If-None-Match, 416. The ETag is the digest, so a cut download may be
    resumed with If-Range whatever happened to the edge meanwhile. Stores without local files answer the whole file.
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
    if _matches(Headers(scope=scope).get("if-none-match"), headers["etag"]):
        return Response(status_code=304, headers=headers)
    file = _File(
        stored.path or "",
        headers=headers,
        media_type=media_type,
        filename=safe_name(name),
        content_disposition_type="inline" if media_type.startswith(_SHOWN) else "attachment",
    )
    return file if stored.path else _stream(store, stored, file, scope["method"])


def _stream(store: Store, stored: Stored, like: FileResponse, method: str) -> Response:
    like.headers["accept-ranges"] = "none"
    like.headers["content-length"] = str(stored.bytes)
    if method == "HEAD":
        return Response(headers=like.headers)
    return StreamingResponse(store.read(stored.sha256), headers=like.headers)


def _matches(condition: str | None, etag: str) -> bool:
    """RFC 9110, section 13.1.2: a list of tags or "*", compared weakly."""
    tags = {tag.strip().removeprefix("W/") for tag in (condition or "").split(",")}
    return "*" in tags or etag in tags
