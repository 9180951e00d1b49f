"""Make the OpenAPI document of `/openapi.json` from the routes, the types of their bodies, and three tables.

Litestar's own document gives the paths and parameters. The schemas come from msgspec, one component for each type, so
that a generated client has one class for each. `api_notes` names the operations; it and `api_fields` describe fields.
"""

import threading
import typing
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Litestar, Response
from litestar.handlers import HTTPRouteHandler

from edge.http.api_fields import FIELDS, PARAMETERS
from edge.http.api_notes import TAGS, FieldNote, codes_of, find_operation
from edge.http.auth import NO_AUTH
from edge.http.openapi import FILE_PATHS, METHODS, SECOND_STATUSES, body_kinds, complete_document, component_name
from edge.jobs.event_stream import LogEvent, NoticeEvent, ProgressEvent
from schemas.asset import DIGEST_PATTERN
from schemas.job import TOKEN_PATTERN
from schemas.job_view import JobView
from schemas.problems import PROBLEM_TYPES, Problem
from schemas.version import VERSION

Json = dict[str, Any]

_ABOUT = (
    "Run GPU jobs on your own machine. Times are RFC 3339 in UTC. A request with an unknown field or query parameter "
    "is refused; answers may get new fields."
)
_REF = "#/components/schemas/{name}"
TEXT_PATHS = ("/v1/jobs/{job_id}/logs", "/metrics")
STREAM_PATHS = ("/v1/events", "/v1/jobs/{job_id}/events")
# RE2 and Go have no look-ahead. In the dialect of JSON Schema `$` is the end of the text.
_RE2_PATTERNS = {TOKEN_PATTERN: "^[A-Za-z0-9_-]{1,64}$", DIGEST_PATTERN: "^[0-9a-f]{64}$"}
# The messages of an event stream. A WebSocket sends each as one JSON object, server-sent events as three fields.
_MESSAGES: Mapping[str, tuple[str, type]] = {
    "StateEvent": ("state", JobView),
    "ProgressMessage": ("progress", ProgressEvent),
    "LogMessage": ("log", LogEvent),
    "NoticeMessage": ("notice", NoticeEvent),
}


_encoded: list[bytes] = []  # at most one: all apps of a process have the same routes, and making it takes 0.1 s
_encoding = threading.Lock()


def encode_document(app: Litestar, routes: Iterable[object]) -> bytes:
    """Return the document as JSON. `routes`: the handlers of the native API, the same at every call."""
    with _encoding:  # two threads may ask at the same time
        if not _encoded:
            complete_document(app.openapi_schema)
            _encoded.append(msgspec.json.encode(make_document(app.openapi_schema.to_schema(), routes)))
        return _encoded[0]


def make_document(drafted: Json, routes: Iterable[object]) -> Json:
    """Return the document. `drafted`: Litestar's. `routes`: the handlers of the native API."""
    handlers = dict(_handlers_by_operation(routes))
    components = _Components([kind for handler in handlers.values() if (kind := _answer_kind(handler))])
    paths: dict[str, Json] = {}
    for (path, method), handler in handlers.items():
        drafted_operation = drafted["paths"][path][method]
        paths.setdefault(path, {})[method] = _make_operation(path, method, drafted_operation, handler, components)
    return {
        "openapi": drafted["openapi"],
        "info": {
            "title": "Lamplighter",
            "version": VERSION,
            "description": _ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "This edge"}],
        "security": [{"key": []}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "webhooks": {"jobState": {"post": _webhook_operation(components)}},
        "components": {"schemas": components.schemas, "securitySchemes": drafted["components"]["securitySchemes"]},
    }


def _handlers_by_operation(routes: Iterable[object]) -> Iterator[tuple[tuple[str, str], HTTPRouteHandler]]:
    """Yield path, method and handler. HEAD is left out where there is a GET, or clients would have both as methods."""
    for handler in routes:
        if not isinstance(handler, HTTPRouteHandler) or handler.include_in_schema is False:
            continue
        methods = [method for method in METHODS if method.upper() in handler.http_methods]
        for method in methods:
            if method != "head" or "get" not in methods:
                yield from (((path.replace(":str}", "}"), method), handler) for path in sorted(handler.paths))


def _answer_kind(handler: HTTPRouteHandler) -> Any:
    """Return the type of the answer's body; None if that is not JSON."""
    kind: Any = handler.parsed_fn_signature.return_type.annotation
    if typing.get_origin(kind) is Response:
        (kind,) = typing.get_args(kind)
    is_json = typing.get_origin(kind) is list or (isinstance(kind, type) and issubclass(kind, msgspec.Struct))
    return kind if is_json else None


class _Components:
    """The schemas of the document: one for each type, with a description and an example for each field."""

    def __init__(self, answers: Iterable[Any]) -> None:
        bodies = body_kinds()
        kinds = [*answers, Problem, JobView, *(kind for _, kind in _MESSAGES.values()), *bodies]
        found, definitions = msgspec.json.schema_components(kinds, ref_template=_REF)
        renamed = {name: component_name(name) for name in definitions}
        self._requested = frozenset(_reachable(bodies))
        self._refs = dict(zip(map(str, kinds), (_rename(schema, renamed) for schema in found), strict=True))
        self.schemas: dict[str, Json] = {}
        for name, schema in definitions.items():
            self.schemas[renamed[name]] = _simplify(_rename(schema, renamed))
        for name, (kind, data) in _MESSAGES.items():
            self.schemas[name] = _message_schema(kind, self.ref(data))
        self.schemas["Event"] = _union_schema(list(_MESSAGES), {kind: name for name, (kind, _) in _MESSAGES.items()})
        self.schemas["WebhookDelivery"] = _delivery_schema(self.ref(JobView))
        self.schemas["AssetCheck"] = _digests_schema()
        for name, schema in self.schemas.items():
            if name not in self._requested and "properties" in schema and name not in _OPTIONAL_FIELDS:
                schema["required"] = list(schema["properties"])
        self._describe()
        self.schemas = dict(sorted(self.schemas.items()))

    def ref(self, kind: Any) -> Json:
        """Return the schema of `kind`: a reference."""
        return dict(self._refs[str(kind)])

    def _describe(self) -> None:
        for name, schema in self.schemas.items():
            schema.pop("title", None)
            for prop, inner in schema.get("properties", {}).items():
                # Some generators treat a field that has a default as required.
                default = inner.pop("default", None)
                is_shown = isinstance(default, str | int | float) and name in self._requested
                note = find_note(name, prop).text
                inner["description"] = f"{note}; the default is `{default}`" if is_shown else note
        for name, schema in self.schemas.items():
            for prop, inner in schema.get("properties", {}).items():
                if "$ref" not in inner:
                    inner["examples"] = [self._field_example(name, prop, inner)]
            if "properties" in schema:
                schema["examples"] = [self._component_example(name)]

    def example(self, schema: Json) -> Any:
        """Return an example of `schema`, made from those of its fields."""
        if "$ref" in schema:
            return self._component_example(schema["$ref"].rsplit("/", 1)[1])
        if "anyOf" in schema:
            return self.example(schema["anyOf"][0])
        if "additionalProperties" in schema:  # an object by host
            return {"gpu-1": self.example(schema["additionalProperties"])}
        return [self.example(schema["items"])]

    def _component_example(self, name: str) -> Any:
        schema = self.schemas[name]
        if "enum" in schema:
            return schema["enum"][0]
        if "oneOf" in schema:
            return self.example(schema["oneOf"][0])
        return {prop: self._field_example(name, prop, inner) for prop, inner in schema["properties"].items()}

    def _field_example(self, name: str, prop: str, schema: Json) -> Any:
        holds_component = "#/components" in str(schema) and not _is_enum(schema, self.schemas)
        return self.example(schema) if holds_component else find_note(name, prop).example


# Their fields are left out where they have their default.
_OPTIONAL_FIELDS = ("Problem", "AuditEvent", "HostGpuSample", "JobActionRequestFilter")


def _is_enum(schema: Json, schemas: Mapping[str, Json]) -> bool:
    refs = [part.split("'")[0] for part in str(schema).split("#/components/schemas/")[1:]]
    return bool(refs) and all("enum" in schemas[name] for name in refs)


def find_note(component: str, field: str) -> FieldNote:
    """Return the note of a field, or an empty one if api_fields has none: a test then fails."""
    return FIELDS.get(component, {}).get(field) or FIELDS["*"].get(field) or FieldNote("")


@cache
def _definitions_of(kind: Any) -> tuple[str, ...]:
    return tuple(msgspec.json.schema_components([kind], ref_template=_REF)[1])


def _reachable(kinds: Iterable[Any]) -> Iterator[str]:
    """Yield the names of the components that requests use."""
    for kind in kinds:
        yield from map(component_name, _definitions_of(kind))


def _rename(schema: Any, names: Mapping[str, str]) -> Any:
    if isinstance(schema, list):
        return [_rename(item, names) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return {"$ref": _REF.format(name=names[schema["$ref"].rsplit("/", 1)[1]])}
    return {key: _rename(value, names) for key, value in schema.items()}


def _simplify(schema: Any) -> Any:
    """Return a schema whose patterns RE2 accepts, and whose objects without properties allow any field explicitly."""
    if isinstance(schema, list):
        return [_simplify(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    simple = {key: _simplify(value) for key, value in schema.items()}
    if simple.get("type") == "object" and "properties" not in simple and "additionalProperties" not in simple:
        simple["additionalProperties"] = True
    if isinstance(simple.get("pattern"), str):
        simple["pattern"] = _RE2_PATTERNS.get(simple["pattern"], simple["pattern"])
    return simple


def _message_schema(kind: str, data: Json) -> Json:
    return {
        "type": "object",
        "description": f"A message of an event stream, of the kind `{kind}`",
        "properties": {"id": {"type": "string"}, "event": {"type": "string", "const": kind}, "data": data},
        "required": ["id", "event", "data"],
    }


def _union_schema(names: list[str], mapping: Mapping[str, str]) -> Json:
    return {
        "description": "A message of an event stream. As server-sent events, the three fields are lines of their own",
        "oneOf": [{"$ref": _REF.format(name=name)} for name in names],
        "discriminator": {
            "propertyName": "event",
            "mapping": {kind: _REF.format(name=name) for kind, name in mapping.items()},
        },
    }


def _delivery_schema(job: Json) -> Json:
    return {
        "type": "object",
        "description": "The body of a webhook. Verify its signature as Standard Webhooks describe",
        "properties": {
            "type": {"type": "string", "const": "job.state"},
            "timestamp": {"type": "string", "format": "date-time"},
            "data": job,
        },
        "required": ["type", "timestamp", "data"],
    }


def _digests_schema() -> Json:
    return {
        "type": "object",
        "description": "Digests to ask for",
        "properties": {"digests": {"type": "array", "items": {"type": "string"}, "maxItems": 1000}},
        "required": ["digests"],
        "additionalProperties": False,
    }


def _webhook_operation(components: _Components) -> Json:
    schema = {"$ref": _REF.format(name="WebhookDelivery")}
    return {
        "operationId": "onJobState",
        "tags": ["webhooks"],
        "summary": "The state of a job has changed",
        "description": (
            "Sent to the URL in the job's `webhook`, and a final state to the webhooks of its owner. Any 2xx answer "
            "counts as received."
        ),
        "requestBody": {"required": True, "content": _json_content(schema, components)},
        "responses": {"204": {"description": "Received"}},
    }


def _json_content(schema: Json, components: _Components) -> Json:
    return {"application/json": {"schema": schema, "example": components.example(schema)}}


def _make_operation(path: str, method: str, drafted: Json, handler: HTTPRouteHandler, components: _Components) -> Json:
    note = find_operation(path, method)
    needs_key = not handler.opt.get(NO_AUTH)
    summary = drafted["summary"]
    operation = {
        "operationId": note.id,
        "tags": [note.tag],
        "summary": summary,
        "description": drafted.get("description") or f"{summary}.",
        "parameters": [_make_parameter(parameter) for parameter in drafted.get("parameters", ())],
        "responses": {
            **_success_responses(path, method, drafted, handler, components),
            **_refusals(path, method, needs_key=needs_key),
        },
    }
    if "requestBody" in drafted:
        operation["requestBody"] = _make_body(drafted["requestBody"], components)
    if not needs_key:
        operation["security"] = []
    return operation


def _make_parameter(drafted: Json) -> Json:
    where, name = drafted["in"], drafted["name"]
    schema = _simplify(drafted.get("schema", {}))
    choices = [choice for choice in schema.pop("oneOf", ()) if choice != {"type": "null"}]
    schema = {**(choices[0] if choices else {}), **schema}
    if schema.get("type") == "integer":  # Litestar writes its limits as 1.0
        schema = {word: int(value) if isinstance(value, float) else value for word, value in schema.items()}
    for holder in (schema, schema.get("items", {})):
        if "$ref" in holder:
            holder["$ref"] = _REF.format(name=component_name(holder["$ref"].rsplit("/", 1)[1]))
    note = PARAMETERS.get((where, name)) or FieldNote(drafted.get("description", ""), _EXAMPLES.get(name))
    required = where == "path" or drafted.get("required", False)
    return {
        "name": name,
        "in": where,
        "required": required,
        "description": note.text,
        "schema": schema,
        "example": note.example,
    }


# Examples for the parameters whose descriptions are in `edge.http.openapi`.
_EXAMPLES: Mapping[str, Any] = {
    "owner": "ann",
    "name": "face.mp4",
    "Accept-Language": "en",
    "X-Trace-Id": "order-17",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "Range": "bytes=0-1023",
    "If-None-Match": '"5891b5b5"',
    "X-Filename": "face.mp4",
    "Tus-Resumable": "1.0.0",
    "Upload-Checksum": "sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00=",
    "Upload-Length": 1024,
    "Upload-Offset": 0,
    "Upload-Defer-Length": "1",
    "Upload-Metadata": "filename ZmFjZS5tcDQ=",
}


def _make_body(drafted: Json, components: _Components) -> Json:
    content: Json = {}
    for media_type, described in drafted["content"].items():
        schema = _simplify(described["schema"])
        content[media_type] = {"schema": schema}
        if media_type == "application/json":
            content[media_type]["example"] = components.example(schema)
    return {"required": drafted.get("required", False), "content": content}


def _success_responses(
    path: str, method: str, drafted: Json, handler: HTTPRouteHandler, components: _Components
) -> Json:
    """Return the answers that are not refusals."""
    kept = {status: response for status, response in drafted["responses"].items() if status != "default"}
    kind = _answer_kind(handler)
    content: Json | None = None
    if kind is not None:
        content = _json_content(_simplify(components.ref(kind)), components)
    elif path in STREAM_PATHS:
        content = {"text/event-stream": {"schema": _STREAM_SCHEMA, "example": _STREAM_EXAMPLE}}
    elif path in TEXT_PATHS:
        content = {"text/plain": {"schema": {"type": "string"}, "example": "step 1 of 10\n"}}
    elif path in FILE_PATHS and method == "get":
        binary = {"schema": {"type": "string", "format": "binary"}}
        content = {"application/octet-stream": binary, "*/*": binary}  # the media type is the file's
    responses: Json = {}
    for status, response in kept.items():
        has_body = status.startswith("2") or (path, method, status) in _SECOND
        is_stream = path in STREAM_PATHS and status == "200"
        answer: Json = {"description": _STREAM_TEXT if is_stream else _answer_text(status, response)}
        if headers := {name: _make_header(header) for name, header in (response.get("headers") or {}).items()}:
            answer["headers"] = headers
        if has_body and content is not None and status != "204":
            answer["content"] = content
        responses[status] = answer
    if path == STREAM_PATHS[1]:
        responses["204"] = {"description": "The job has ended, and there is no event after the one that was named"}
    return responses


# OpenAPI 3.1 cannot type the items of a stream; 3.2 has `itemSchema`, which the generators do not read yet. JSON Schema
# has `contentSchema` for what a string contains. A generator that does not know it makes a string of the answer.
_STREAM_SCHEMA: Json = {
    "type": "string",
    "contentMediaType": "text/event-stream",
    "contentSchema": {"type": "array", "items": {"$ref": _REF.format(name="Event")}},
}
_STREAM_TEXT = "Server-sent events, each one an `Event`. `event` tells the kind, and `data` is JSON: " + ", ".join(
    f"`{kind}` is a `{name}`" for name, (kind, _) in _MESSAGES.items()
)
_STREAM_EXAMPLE = 'id: 9f3c-18-12\r\nevent: progress\r\ndata: {"job_id":"first","fraction":0.42}\r\n\r\n'
_SECOND = {(path, method, status) for (path, method), status in SECOND_STATUSES.items()}


def _answer_text(status: str, response: Json) -> str:
    if status in {"304", "307", "416"}:
        return str(response["description"])
    return {"200": "Done", "201": "Created", "202": "Accepted, and durable", "204": "Done", "206": "The ranges"}.get(
        status, str(response["description"])
    )


def _make_header(header: Json) -> Json:
    return {"description": header.get("description", ""), "schema": header["schema"]}


def _refusals(path: str, method: str, *, needs_key: bool) -> Json:
    """Return one answer for each status that a refusal may have, with its codes."""
    by_status: dict[int, list[str]] = {}
    for code in codes_of(path, method, needs_key=needs_key):
        by_status.setdefault(PROBLEM_TYPES[code].status, []).append(code)
    if path == "/readyz":
        by_status.pop(503, None)  # it answers 503 with its reasons
    return {str(status): _refusal(status, codes, path) for status, codes in sorted(by_status.items())}


def _refusal(status: int, codes: list[str], path: str) -> Json:
    description = "; ".join(f"`{code}`: {PROBLEM_TYPES[code].title}" for code in codes)
    problem = Problem(
        type=f"urn:lamplighter:problem:{codes[0]}",
        title=PROBLEM_TYPES[codes[0]].title,
        status=status,
        detail="What happened, why, and what to do",
        code=codes[0],
        instance=path,
    )
    answer: Json = {
        "description": description,
        "content": {
            "application/problem+json": {
                "schema": {"$ref": _REF.format(name="Problem")},
                "example": msgspec.to_builtins(problem),
            }
        },
    }
    if status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        seconds = {"type": "integer", "minimum": 1}
        answer["headers"] = {"Retry-After": {"description": "Seconds after which to try again", "schema": seconds}}
    return answer
