"""What `/schema/openapi.json` says that Litestar cannot read off the routes: problems, second statuses, headers."""

from collections.abc import Mapping
from typing import Any

from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import (
    Components,
    OpenAPI,
    OpenAPIHeader,
    OpenAPIMediaType,
    OpenAPIResponse,
    Operation,
    Parameter,
    PathItem,
    SecurityScheme,
)

from edge.routes.documents import Verbatim, inlined
from schemas.errors import Problem
from schemas.version import VERSION

METHODS = ("get", "head", "put", "post", "patch", "delete")

# The second status under which a route sends the body of its first.
ALSO = {
    ("/v1/jobs/{job_id}", "put"): "200",
    ("/v1/assets/{sha256}", "put"): "200",
    ("/v1/assets", "post"): "200",
    ("/readyz", "get"): "503",
    ("/readyz", "head"): "503",
}
# What answers without a key.
OPEN = ("/livez", "/readyz")
# Files are sent as what they are, whole or in ranges; a log likewise.
FILES = ("/v1/assets/{sha256}", "/v1/jobs/{job_id}/files/{name}", "/v1/jobs/{job_id}/logs")
BYTES = OpenAPIMediaType(schema=Verbatim({"type": "string", "format": "binary"}))
WITHOUT_BODY = {
    "304": "What `If-None-Match` names is what there is",
    "307": "The store's own URL of the file, for an hour",
    "416": "The range lies outside the file",
}

TEXT: dict[str, Any] = {"type": "string"}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
TUS = {"type": "string", "enum": ["1.0.0"]}


def _header(name: str, schema: Mapping[str, Any], description: str, *, required: bool = False) -> Parameter:
    return Parameter(name, "header", schema=Verbatim(dict(schema)), description=description, required=required)


def _query(name: str, schema: Mapping[str, Any], description: str) -> Parameter:
    return Parameter(name, "query", schema=Verbatim(dict(schema)), description=description)


OWNER = _query("owner", TEXT, "Another owner than the key's: needs scope admin, or runner for the files of its jobs")
LANGUAGE = _header("Accept-Language", TEXT, "zh or en, for the texts that people read")
TRACE = _header("X-Trace-Id", {"type": "string", "maxLength": 128}, "The job's trace_id, where the body names none")
RANGES = (
    _header("Range", TEXT, "bytes=first-last"),
    _header("If-None-Match", TEXT, "The ETag, which is the digest in quotes"),
)
NAMED = (
    _header("X-Filename", TEXT, "The file's name, percent-encoded"),
    _query("name", TEXT, "The same, for clients that set no headers"),
)
SPOKEN = _header("Tus-Resumable", TUS, "The version of tus", required=True)
CHECKSUM = _header("Upload-Checksum", TEXT, "sha1, sha256, sha512 or md5, a space, the digest in base64")
LENGTH = _header("Upload-Length", COUNT, "Bytes of the whole file")

# The headers and queries that routes read by themselves.
READ: dict[tuple[str, str], tuple[Parameter, ...]] = {
    ("/v1/jobs", "post"): (TRACE,),
    ("/v1/jobs/{job_id}", "put"): (TRACE,),
    ("/v1/batches", "post"): (TRACE,),
    ("/v1/assets", "post"): NAMED,
    ("/v1/assets/{sha256}", "put"): NAMED,
    ("/v1/uploads", "post"): (
        SPOKEN,
        LENGTH,
        _header("Upload-Defer-Length", {"type": "string", "enum": ["1"]}, "In place of Upload-Length: told later"),
        _header("Upload-Metadata", TEXT, "filename, filetype, sha256: a name, a space, the value in base64, a comma"),
        CHECKSUM,
    ),
    ("/v1/uploads/{upload_id}", "head"): (SPOKEN,),
    ("/v1/uploads/{upload_id}", "patch"): (
        SPOKEN,
        _header("Upload-Offset", COUNT, "Where this piece belongs", required=True),
        LENGTH,
        CHECKSUM,
    ),
    ("/v1/uploads/{upload_id}", "delete"): (SPOKEN,),
    **{(path, method): RANGES for path in FILES for method in ("get", "head")},
}
OFFSET = OpenAPIHeader(schema=Verbatim(COUNT), description="How many bytes there are")
ASSET = OpenAPIHeader(schema=Verbatim(TEXT), description="sha256:… of the asset that the upload became")
PLACE = OpenAPIHeader(schema=Verbatim(TEXT), description="Where the new thing is")
# The headers that an answer's meaning is in. Uploads answer with nothing else.
TOLD: dict[tuple[str, str], dict[str, OpenAPIHeader]] = {
    ("/v1/jobs", "post"): {"Location": PLACE},
    ("/v1/uploads", "post"): {"Location": PLACE, "Upload-Offset": OFFSET, "Lamplighter-Asset": ASSET},
    ("/v1/uploads/{upload_id}", "head"): {"Upload-Offset": OFFSET, "Lamplighter-Asset": ASSET},
    ("/v1/uploads/{upload_id}", "patch"): {"Upload-Offset": OFFSET, "Lamplighter-Asset": ASSET},
}
UPLOADS = "/v1/uploads"


def config() -> OpenAPIConfig:
    """The document's own facts."""
    key = SecurityScheme(type="http", scheme="bearer", description="lamp_<id>_<secret>")
    return OpenAPIConfig(
        title="Lamplighter",
        version=VERSION,
        path="/schema",
        render_plugins=[JsonRenderPlugin()],
        components=Components(security_schemes={"key": key}),
        security=[{"key": []}],
    )


def complete(document: OpenAPI) -> None:
    """Add to every operation what it reads and answers besides what its function says."""
    for path, item in (document.paths or {}).items():
        for method, operation in _operations(item):
            operation.responses = {**_responses(path, method, operation)}
            anywhere = () if path in OPEN else (OWNER, LANGUAGE)
            operation.parameters = [*(operation.parameters or ()), *READ.get((path, method), ()), *anywhere]
            if path in OPEN:
                operation.security = []


def _responses(path: str, method: str, operation: Operation) -> dict[str, OpenAPIResponse]:
    said = {status: response for status, response in (operation.responses or {}).items() if status != "400"}
    responses: dict[str, OpenAPIResponse] = {}
    for status, response in said.items():
        if not isinstance(response, OpenAPIResponse):
            raise TypeError(f"{method} {path} {status} is told by reference: nothing can be added to it")
        responses[status] = response
    success = next(response for status, response in responses.items() if status.startswith("2"))
    if path in FILES and method in {"get", "head"}:
        success = OpenAPIResponse(description="The file, or the ranges asked for", content={"*/*": BYTES})
        responses |= {"200": success, "206": success}
        responses |= {status: OpenAPIResponse(description=text) for status, text in WITHOUT_BODY.items()}
    if path.startswith(UPLOADS):
        success.content = None
    success.headers = {**(success.headers or {}), **TOLD.get((path, method), {})}
    if (path, method) in ALSO:
        responses[ALSO[path, method]] = success
    return {**responses, "default": _refusal()}


def _refusal() -> OpenAPIResponse:
    return OpenAPIResponse(
        description="Refused (RFC 9457): `code` is one of a closed list, `errors` names fields",
        content={"application/problem+json": OpenAPIMediaType(schema=Verbatim(inlined(Problem)))},
    )


def _operations(item: PathItem) -> list[tuple[str, Operation]]:
    found = ((method, getattr(item, method)) for method in METHODS)
    return [(method, operation) for method, operation in found if operation is not None]
