"""`/openapi.json` and `/docs`: the OpenAPI document and a page that shows it, both without a key."""

from functools import cache
from importlib.resources import files

from anyio import to_thread
from litestar import Response, get
from litestar.params import FromPath

from edge import reference
from edge.http.auth import NO_AUTH
from edge.http.dependencies import AnyRequest
from schemas.problems import ProblemError

_MEDIA_TYPES = {
    "index.html": "text/html",
    "reference.js": "text/javascript",
    "texts.js": "text/javascript",
    "reference.css": "text/css",
}
_POLICY = "; ".join(
    (
        *("default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'"),
        *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
    )
)


@cache
def _read_file(name: str) -> bytes:
    return files(reference).joinpath(name).read_bytes()


def _file_response(name: str) -> Response[bytes]:
    if name not in _MEDIA_TYPES:
        raise ProblemError("not_found", "the reference page has no such file: open /docs")
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
    return Response(_read_file(name), headers=headers, media_type=_MEDIA_TYPES[name])


@get("/openapi.json", opt={NO_AUTH: True}, include_in_schema=False)
async def openapi_document(request: AnyRequest) -> Response[bytes]:
    """Describe all routes for programs, in OpenAPI 3.1."""
    document = await to_thread.run_sync(request.app.state.encode_api_document)  # the first time it takes 0.1 s
    return Response(document, headers={"Cache-Control": "no-cache"}, media_type="application/json")


@get("/docs", opt={NO_AUTH: True}, include_in_schema=False, sync_to_thread=False)
def reference_page() -> Response[bytes]:
    """Describe all routes for people, from the same document."""
    return _file_response("index.html")


@get("/docs/{name:str}", opt={NO_AUTH: True}, include_in_schema=False, sync_to_thread=False)
def reference_file(name: FromPath[str]) -> Response[bytes]:
    """Return a file of the reference page."""
    return _file_response(name)


ROUTES = (openapi_document, reference_page, reference_file)
