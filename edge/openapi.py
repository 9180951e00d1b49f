"""What `/schema/openapi.json` says that Litestar cannot read off the routes: problems, and second statuses."""

from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import (
    Components,
    OpenAPI,
    OpenAPIMediaType,
    OpenAPIResponse,
    Operation,
    PathItem,
    SecurityScheme,
)

from edge.routes.documents import Verbatim, inlined
from schemas.errors import Problem

VERSION = "0.1.0"
METHODS = ("get", "head", "put", "post", "delete")

# The second status under which a route sends the body of its first.
ALSO = {
    ("/v1/jobs/{job_id}", "put"): "200",
    ("/v1/assets/{sha256}", "put"): "200",
    ("/v1/assets", "post"): "200",
    ("/readyz", "get"): "503",
    ("/readyz", "head"): "503",
}
# Files are sent as what they are, whole or in ranges.
FILES = ("/v1/assets/{sha256}", "/v1/jobs/{job_id}/files/{name}")
BYTES = OpenAPIMediaType(schema=Verbatim({"type": "string", "format": "binary"}))


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
    """Add to every operation what it answers besides its success."""
    problem = OpenAPIResponse(
        description="Refused (RFC 9457): `code` is one of a closed list, `errors` names fields",
        content={"application/problem+json": OpenAPIMediaType(schema=Verbatim(inlined(Problem)))},
    )
    for path, item in (document.paths or {}).items():
        for method, operation in _operations(item):
            responses = operation.responses or {}
            success = next(response for status, response in responses.items() if status.startswith("2"))
            if path in FILES and method in {"get", "head"}:
                success = OpenAPIResponse(description="The file, or the ranges asked for", content={"*/*": BYTES})
                responses |= {"200": success, "206": success}
            if (path, method) in ALSO:
                responses[ALSO[path, method]] = success
            responses.pop("400", None)
            operation.responses = {**responses, "default": problem}


def _operations(item: PathItem) -> list[tuple[str, Operation]]:
    found = ((method, getattr(item, method)) for method in METHODS)
    return [(method, operation) for method, operation in found if operation is not None]
