"""The two pages of the edge: the console at `/`, and the reference of the API at `/docs`, made from `/openapi.json`.

Both are static files that need no key. The console calls the API like any other client.
"""

import hashlib
import re
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import NamedTuple

from anyio import to_thread
from litestar import Response, Router, get
from litestar.params import FromPath

from edge import console, reference
from edge.console import ConsoleSettings
from edge.http.auth import NO_AUTH
from edge.http.dependencies import AnyRequest
from edge.http.request_input import ANY_PARAMETER
from schemas.problems import ProblemError

_REFERENCE_FILES = {
    "index.html": "text/html",
    "reference.js": "text/javascript",
    "texts.js": "text/javascript",
    "reference.css": "text/css",
}
_REFERENCE_POLICY = "; ".join(
    (
        *("default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'"),
        *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
    )
)


@cache
def _read_reference_file(name: str) -> bytes:
    return files(reference).joinpath(name).read_bytes()


def _reference_response(name: str) -> Response[bytes]:
    if name not in _REFERENCE_FILES:
        raise ProblemError("not_found", "the reference page has no such file: open /docs")
    headers = {"Content-Security-Policy": _REFERENCE_POLICY, "Cache-Control": "no-cache"}
    return Response(_read_reference_file(name), headers=headers, media_type=_REFERENCE_FILES[name])


@get("/openapi.json", opt={NO_AUTH: True}, include_in_schema=False)
async def openapi_document(request: AnyRequest) -> Response[bytes]:
    """Describe all routes for programs, in OpenAPI 3.1."""
    document = await to_thread.run_sync(request.app.state.encode_api_document)  # the first time it takes 0.1 s
    return Response(document, headers={"Cache-Control": "no-cache"}, media_type="application/json")


@get("/docs", opt={NO_AUTH: True}, include_in_schema=False, sync_to_thread=False)
def reference_page() -> Response[bytes]:
    """Describe all routes for people, from the same document."""
    return _reference_response("index.html")


@get("/docs/{name:str}", opt={NO_AUTH: True}, include_in_schema=False, sync_to_thread=False)
def reference_file(name: FromPath[str]) -> Response[bytes]:
    """Return a file of the reference page."""
    return _reference_response(name)


_MEDIA_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".json": "application/json",
}
# That takes whole lines. No string has one.
_COMMENT = re.compile(rb"^[ \t]*/\*\*(?:(?!\*/).)*\*/[ \t]*\n", re.MULTILINE | re.DOTALL)
_CLIENT_FILES = "client"  # clients/js/src, as /console/client/… ; a wheel has a copy inside the package


class ConsoleFile(NamedTuple):
    """The content, media type and entity tag of a console file."""

    content: bytes
    media_type: str
    etag: str


def content_security_policy(media_origins: tuple[str, ...] = ()) -> str:
    """Return the policy of the page: nothing but its own files and the API of the same origin.

    `media_origins`: where the store keeps assets if not at the edge; a result plays from there.
    """
    other_origins = "".join(f" {origin}" for origin in media_origins)
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' blob:",
            f"media-src 'self' blob:{other_origins}",
            f"connect-src 'self'{other_origins}",
            "worker-src 'self'",
            "manifest-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _client_folder() -> Traversable:
    packaged = files(console) / _CLIENT_FILES
    return packaged if packaged.is_dir() else Path(str(files(console))).parents[1] / "clients" / "js" / "src"


@cache
def read_console_file(name: str) -> ConsoleFile | None:
    """Return the file at `/console/<name>`, scripts without their comments; None if it does not exist."""
    suffix = Path(name).suffix
    parts = name.split("/")
    if suffix not in _MEDIA_TYPES or any(part in {"", ".", ".."} or "\\" in part for part in parts):
        return None
    folder: Traversable = files(console)
    if parts[0] == _CLIENT_FILES:
        folder, parts = _client_folder(), parts[1:]
    file = folder.joinpath(*parts)
    if not file.is_file():
        return None
    content = file.read_bytes()
    if suffix == ".js":
        content = _COMMENT.sub(b"", content)
    return ConsoleFile(content, _MEDIA_TYPES[suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def _console_response(request: AnyRequest, name: str, headers: dict[str, str]) -> Response[bytes]:
    file = read_console_file(name)
    if file is None:
        raise ProblemError("not_found", "the console has no such file: reload the page")
    headers = {"ETag": file.etag, "Cache-Control": "no-cache", **headers}
    if request.headers.get("if-none-match") == file.etag:
        return Response(b"", status_code=304, headers=headers, media_type=file.media_type)
    return Response(file.content, headers=headers, media_type=file.media_type)


def make_console_router(settings: ConsoleSettings, media_origins: tuple[str, ...] = ()) -> Router:
    """Return the routes of the console. `media_origins`: see `content_security_policy`."""
    headers = {"Content-Security-Policy": content_security_policy(media_origins)}

    @get(settings.path, opt={NO_AUTH: True}, include_in_schema=False, sync_to_thread=False)
    def console_page(request: AnyRequest) -> Response[bytes]:
        return _console_response(request, "index.html", headers)

    @get("/console/{name:path}", opt={NO_AUTH: True}, include_in_schema=False, sync_to_thread=False)
    def console_file(request: AnyRequest, name: FromPath[str]) -> Response[bytes]:
        return _console_response(request, name.removeprefix("/"), headers)

    return Router("/", route_handlers=[console_page, console_file], opt={ANY_PARAMETER: True})


ROUTES = (
    openapi_document,
    reference_page,
    reference_file,
)
