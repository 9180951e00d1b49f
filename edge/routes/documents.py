"""What OpenAPI says of the routes that read their body themselves."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema

from schemas.job import Submission

PIECE_TYPE = "application/offset+octet-stream"  # tus 1.0.0, "PATCH"
_REF = "#/components/schemas/{name}"


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """`schema` with every `$ref` replaced by what it names: the document stands alone."""
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
    return {name: _inlined(value, definitions) for name, value in schema.items()}


@cache
def inlined(kind: type) -> dict[str, Any]:
    """The JSON Schema of `kind`, in one piece. It is made once, for all who write it out; nobody may change it."""
    (schema,), definitions = msgspec.json.schema_components([kind], ref_template=_REF)
    whole: dict[str, Any] = _inlined(schema, definitions)
    return whole


class Verbatim(Schema):
    """A JSON Schema that is written out as it is."""

    def __init__(self, schema: dict[str, Any]) -> None:
        super().__init__()
        object.__setattr__(self, "verbatim", schema)

    def to_schema(self) -> dict[str, Any]:
        verbatim: dict[str, Any] = self.verbatim  # type: ignore[attr-defined]
        return verbatim


@dataclass
class JobBody(Operation):
    """A submit: JSON, or multipart with the field `job` and a file part per asset input."""

    def __post_init__(self) -> None:
        form = {
            "type": "object",
            "required": ["job"],
            "properties": {"job": {"type": "string", "description": "the JSON of the job"}},
            "additionalProperties": {"type": "string", "format": "binary"},
        }
        self.request_body = RequestBody(
            required=True,
            content={
                "application/json": OpenAPIMediaType(schema=Verbatim(inlined(Submission))),
                "multipart/form-data": OpenAPIMediaType(schema=Verbatim(form)),
            },
        )


_BYTES = Verbatim({"type": "string", "format": "binary"})


@dataclass
class RawBody(Operation):
    """A file: any bytes."""

    def __post_init__(self) -> None:
        self.request_body = RequestBody(
            required=True, content={"application/octet-stream": OpenAPIMediaType(schema=_BYTES)}
        )


@dataclass
class FileBody(Operation):
    """A file: any bytes, or the one file part of a form."""

    def __post_init__(self) -> None:
        form = {"type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}}}
        self.request_body = RequestBody(
            required=True,
            content={
                "application/octet-stream": OpenAPIMediaType(schema=_BYTES),
                "multipart/form-data": OpenAPIMediaType(schema=Verbatim(form)),
            },
        )


@dataclass
class PieceBody(Operation):
    """A piece of a file, as tus sends it."""

    def __post_init__(self) -> None:
        self.request_body = RequestBody(content={PIECE_TYPE: OpenAPIMediaType(schema=_BYTES)})


def body_of(kind: type) -> type[Operation]:
    """An operation whose body is a `kind` in JSON."""

    @dataclass
    class Body(Operation):
        def __post_init__(self) -> None:
            schema = OpenAPIMediaType(schema=Verbatim(inlined(kind)))
            self.request_body = RequestBody(required=True, content={"application/json": schema})

    return Body


@dataclass
class DigestsBody(Operation):
    """`{"digests": ["sha256:…"]}`."""

    def __post_init__(self) -> None:
        digests = {"type": "array", "items": {"type": "string"}, "maxItems": 1000}
        body = {
            "type": "object",
            "required": ["digests"],
            "properties": {"digests": digests},
            "additionalProperties": False,
        }
        self.request_body = RequestBody(
            required=True, content={"application/json": OpenAPIMediaType(schema=Verbatim(body))}
        )
