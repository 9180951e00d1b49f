"""Complete Litestar's draft of the OpenAPI document with what it cannot derive from the handlers.

These are the bodies of routes that read their body themselves, second statuses and headers. `edge.http.api_document`
makes the document of `/openapi.json` from the draft.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from litestar import Request
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
    RequestBody,
    Schema,
    SecurityScheme,
)

from schemas.job import Submission
from schemas.version import VERSION

CHUNK_MEDIA_TYPE = "application/offset+octet-stream"  # tus 1.0.0, "PATCH"
_REF_TEMPLATE = "#/components/schemas/{name}"


_body_kinds: dict[type, None] = {}

# The name of a component is that of its class, without "View"; these have another.
COMPONENT_NAMES: Mapping[str, str] = {
    "ActivityView": "Activity",
    "AttemptUsage": "JobUsage",
    "BatchBody": "BatchRequest",
    "EndpointListView": "EndpointList",
    "FileView": "OutputFile",
    "GpuReport": "Gpu",
    "JobFailure": "JobError",
    "PolicyRequest": "Policy",
    "SecretView": "WebhookSecret",
    "Status": "JobStatus",
    "WarmPoolStatus": "WarmPool",
    "WebhookRequest": "Webhook",
}


def component_name(class_name: str) -> str:
    """Return the name of a class in the document, which generated clients give to their own class."""
    return COMPONENT_NAMES.get(class_name) or class_name.removesuffix("View")


def body_ref(kind: type) -> "VerbatimSchema":
    """Return a reference to the component of a request body, and note that the document needs it."""
    _body_kinds[kind] = None
    return VerbatimSchema({"$ref": _REF_TEMPLATE.format(name=component_name(kind.__name__))})


def body_kinds() -> tuple[type, ...]:
    """Return the types of all request bodies."""
    return tuple(_body_kinds)


class VerbatimSchema(Schema):
    """A JSON Schema that is written to the document unchanged."""

    def __init__(self, schema: dict[str, Any]) -> None:
        super().__init__()
        object.__setattr__(self, "verbatim", schema)

    def to_schema(self) -> dict[str, Any]:
        verbatim: dict[str, Any] = self.verbatim  # type: ignore[attr-defined]
        return verbatim


@dataclass
class JobBody(Operation):
    """An operation whose body is a submit: JSON, or multipart with the field `job` and a file per asset input."""

    def __post_init__(self) -> None:
        form = {
            "type": "object",
            "required": ["job"],
            "properties": {"job": {"type": "string", "description": "The JSON of the job"}},
            "additionalProperties": {"type": "string", "format": "binary"},
        }
        self.request_body = RequestBody(
            required=True,
            content={
                "application/json": OpenAPIMediaType(schema=body_ref(Submission)),
                "multipart/form-data": OpenAPIMediaType(schema=VerbatimSchema(form)),
            },
        )


_BINARY_SCHEMA = VerbatimSchema({"type": "string", "format": "binary"})


@dataclass
class RawBody(Operation):
    """An operation whose body is a file as raw bytes."""

    def __post_init__(self) -> None:
        self.request_body = RequestBody(
            required=True, content={"application/octet-stream": OpenAPIMediaType(schema=_BINARY_SCHEMA)}
        )


@dataclass
class FileBody(Operation):
    """An operation whose body is a file, as raw bytes or as the only file of a form."""

    def __post_init__(self) -> None:
        form = {"type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}}}
        self.request_body = RequestBody(
            required=True,
            content={
                "application/octet-stream": OpenAPIMediaType(schema=_BINARY_SCHEMA),
                "multipart/form-data": OpenAPIMediaType(schema=VerbatimSchema(form)),
            },
        )


@dataclass
class ChunkBody(Operation):
    """An operation whose body is a chunk of a resumable upload (tus)."""

    def __post_init__(self) -> None:
        self.request_body = RequestBody(content={CHUNK_MEDIA_TYPE: OpenAPIMediaType(schema=_BINARY_SCHEMA)})


def json_body(kind: type) -> type[Operation]:
    """Return an operation whose body is a `kind` in JSON."""

    @dataclass
    class Body(Operation):
        def __post_init__(self) -> None:
            schema = OpenAPIMediaType(schema=body_ref(kind))
            self.request_body = RequestBody(required=True, content={"application/json": schema})

    return Body


@dataclass
class DigestsBody(Operation):
    """An operation whose body is `{"digests": ["sha256:…"]}`."""

    def __post_init__(self) -> None:
        body = {"$ref": _REF_TEMPLATE.format(name="AssetCheck")}
        self.request_body = RequestBody(
            required=True, content={"application/json": OpenAPIMediaType(schema=VerbatimSchema(body))}
        )


METHODS = ("get", "head", "put", "post", "patch", "delete")

# The second status of a route that sends the same body with two statuses.
SECOND_STATUSES = {
    ("/v1/jobs/{job_id}", "put"): "200",
    ("/v1/assets/{sha256}", "put"): "200",
    ("/v1/assets", "post"): "200",
    ("/readyz", "get"): "503",
    ("/readyz", "head"): "503",
}
# Paths that need no key.
PATHS_WITHOUT_KEY = ("/livez", "/readyz")
# Paths that return a file, whole or in ranges.
FILE_PATHS = ("/v1/assets/{sha256}", "/v1/jobs/{job_id}/files/{name}", "/v1/jobs/{job_id}/logs")
BINARY_CONTENT = OpenAPIMediaType(schema=VerbatimSchema({"type": "string", "format": "binary"}))
STATUSES_WITHOUT_BODY = {
    "304": "`If-None-Match` names the current file",
    "307": "Redirect to a URL of the object store, valid for one hour",
    "416": "The range is outside the file",
}

TEXT_SCHEMA: dict[str, Any] = {"type": "string"}
COUNT_SCHEMA: dict[str, Any] = {"type": "integer", "minimum": 0}
TUS_VERSION_SCHEMA = {"type": "string", "enum": ["1.0.0"]}


def _header(name: str, schema: Mapping[str, Any], description: str, *, required: bool = False) -> Parameter:
    return Parameter(name, "header", schema=VerbatimSchema(dict(schema)), description=description, required=required)


def _query(name: str, schema: Mapping[str, Any], description: str) -> Parameter:
    return Parameter(name, "query", schema=VerbatimSchema(dict(schema)), description=description)


OWNER_PARAMETER = _query(
    "owner",
    TEXT_SCHEMA,
    "Act for this owner instead of the key's. Needs the scope admin, or runner for the files of its jobs",
)
LANGUAGE_PARAMETER = _header("Accept-Language", TEXT_SCHEMA, "zh or en: the language of messages for people")
TRACE_PARAMETER = _header(
    "X-Trace-Id", {"type": "string", "maxLength": 128}, "The trace_id of the job, if the body has none"
)
TRACEPARENT_PARAMETER = _header(
    "traceparent", {"type": "string", "maxLength": 512}, "W3C trace context: the spans of the job are inside that span"
)
SUBMIT_PARAMETERS = (TRACE_PARAMETER, TRACEPARENT_PARAMETER)
RANGE_PARAMETERS = (
    _header("Range", TEXT_SCHEMA, "For example `bytes=0-1023`"),
    _header("If-None-Match", TEXT_SCHEMA, "The ETag of the file: its digest in quotes"),
)
FILE_NAME_PARAMETERS = (
    _header("X-Filename", TEXT_SCHEMA, "The name of the file, percent-encoded"),
    _query("name", TEXT_SCHEMA, "The name of the file, for clients that cannot set headers"),
)
TUS_VERSION_PARAMETER = _header("Tus-Resumable", TUS_VERSION_SCHEMA, "The version of the tus protocol", required=True)
CHECKSUM_PARAMETER = _header(
    "Upload-Checksum", TEXT_SCHEMA, "The algorithm (sha1, sha256, sha512 or md5), a space, and the digest in base64"
)
LENGTH_PARAMETER = _header("Upload-Length", COUNT_SCHEMA, "The size of the whole file in bytes")

# Headers and query parameters that handlers read from the request themselves.
EXTRA_PARAMETERS: dict[tuple[str, str], tuple[Parameter, ...]] = {
    ("/v1/jobs", "post"): SUBMIT_PARAMETERS,
    ("/v1/jobs/{job_id}", "put"): SUBMIT_PARAMETERS,
    ("/v1/batches", "post"): SUBMIT_PARAMETERS,
    ("/v1/assets", "post"): FILE_NAME_PARAMETERS,
    ("/v1/assets/{sha256}", "put"): FILE_NAME_PARAMETERS,
    ("/v1/uploads", "post"): (
        TUS_VERSION_PARAMETER,
        LENGTH_PARAMETER,
        _header(
            "Upload-Defer-Length",
            {"type": "string", "enum": ["1"]},
            "Send 1 instead of Upload-Length if the size is not yet known",
        ),
        _header(
            "Upload-Metadata",
            TEXT_SCHEMA,
            "Pairs separated by commas: a name (filename, filetype or sha256), a space, and the value in base64",
        ),
        CHECKSUM_PARAMETER,
    ),
    ("/v1/uploads/{upload_id}", "head"): (TUS_VERSION_PARAMETER,),
    ("/v1/uploads/{upload_id}", "patch"): (
        TUS_VERSION_PARAMETER,
        _header("Upload-Offset", COUNT_SCHEMA, "The offset of this chunk in bytes", required=True),
        LENGTH_PARAMETER,
        CHECKSUM_PARAMETER,
    ),
    ("/v1/uploads/{upload_id}", "delete"): (TUS_VERSION_PARAMETER,),
    **{(path, method): RANGE_PARAMETERS for path in FILE_PATHS for method in ("get", "head")},
}
UPLOAD_OFFSET_HEADER = OpenAPIHeader(schema=VerbatimSchema(COUNT_SCHEMA), description="The number of bytes received")
ASSET_HEADER = OpenAPIHeader(
    schema=VerbatimSchema(TEXT_SCHEMA), description="The digest (`sha256:…`) of the asset, once the upload is complete"
)
LOCATION_HEADER = OpenAPIHeader(schema=VerbatimSchema(TEXT_SCHEMA), description="The URL of the new resource")
# Response headers that clients need. Uploads respond with headers only.
RESPONSE_HEADERS: dict[tuple[str, str], dict[str, OpenAPIHeader]] = {
    ("/v1/jobs", "post"): {"Location": LOCATION_HEADER},
    ("/v1/uploads", "post"): {
        "Location": LOCATION_HEADER,
        "Upload-Offset": UPLOAD_OFFSET_HEADER,
        "Lamplighter-Asset": ASSET_HEADER,
    },
    ("/v1/uploads/{upload_id}", "head"): {"Upload-Offset": UPLOAD_OFFSET_HEADER, "Lamplighter-Asset": ASSET_HEADER},
    ("/v1/uploads/{upload_id}", "patch"): {"Upload-Offset": UPLOAD_OFFSET_HEADER, "Lamplighter-Asset": ASSET_HEADER},
}
UPLOADS_PATH = "/v1/uploads"


class _DocumentPlugin(JsonRenderPlugin):
    """Serves the document that `edge.http.api_document` has made."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        del openapi_schema
        document: bytes = request.app.state.encode_api_document()
        return document


def make_openapi_config() -> OpenAPIConfig:
    """Return the title, version, path and security scheme of the document."""
    key = SecurityScheme(type="http", scheme="bearer", description="An API key: lamp_<id>_<secret>")
    return OpenAPIConfig(
        title="Lamplighter",
        version=VERSION,
        path="/schema",
        render_plugins=[_DocumentPlugin()],
        components=Components(security_schemes={"key": key}),
        security=[{"key": []}],
        use_handler_docstrings=True,
    )


def complete_document(document: OpenAPI) -> None:
    """Set the summary of every operation, and add its parameters, responses and headers."""
    for path, item in (document.paths or {}).items():
        for method, operation in _operations(item):
            operation.summary, operation.description = _split_docstring(operation.description or "")
            operation.responses = {**_responses(path, method, operation)}
            common = () if path in PATHS_WITHOUT_KEY else (OWNER_PARAMETER, LANGUAGE_PARAMETER)
            own = [*(operation.parameters or ()), *EXTRA_PARAMETERS.get((path, method), ())]
            named = {parameter.name for parameter in own if isinstance(parameter, Parameter)}
            operation.parameters = [*own, *(shared for shared in common if shared.name not in named)]
            if path in PATHS_WITHOUT_KEY:
                operation.security = []


def _split_docstring(text: str) -> tuple[str, str | None]:
    """Return the first sentence of a handler's docstring as the summary, and the rest as the description if any.

    Line breaks inside a paragraph are those of the source, so they are removed.
    """
    first, *others = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    summary, _, rest = first.partition(". ")
    return summary.removesuffix("."), "\n\n".join(filter(None, [rest, *others])) or None


def _responses(path: str, method: str, operation: Operation) -> dict[str, OpenAPIResponse]:
    derived = {status: response for status, response in (operation.responses or {}).items() if status != "400"}
    responses: dict[str, OpenAPIResponse] = {}
    for status, response in derived.items():
        if not isinstance(response, OpenAPIResponse):
            raise TypeError(f"{method} {path} {status} is a reference: define the response inline")
        responses[status] = response
    success = next(response for status, response in responses.items() if status.startswith("2"))
    if path in FILE_PATHS and method in {"get", "head"}:
        success = OpenAPIResponse(description="The file, or the requested ranges", content={"*/*": BINARY_CONTENT})
        responses |= {"200": success, "206": success}
        responses |= {status: OpenAPIResponse(description=text) for status, text in STATUSES_WITHOUT_BODY.items()}
    if path.startswith(UPLOADS_PATH) or "204" in derived:
        success.content = None
    success.headers = {**(success.headers or {}), **RESPONSE_HEADERS.get((path, method), {})}
    if (path, method) in SECOND_STATUSES:
        responses[SECOND_STATUSES[path, method]] = success
    return responses


def _operations(item: PathItem) -> list[tuple[str, Operation]]:
    found = ((method, getattr(item, method)) for method in METHODS)
    return [(method, operation) for method, operation in found if operation is not None]
