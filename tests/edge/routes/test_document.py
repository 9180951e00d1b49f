"""The OpenAPI document is worth generating from, `/docs` needs no key, and unknown names are refused with the known."""

import json
import re
from typing import Any

import jsonschema
import pytest

from edge.app import ROUTES
from edge.http import request_input
from edge.http.api_fields import FIELDS, PARAMETERS
from edge.http.api_notes import OPERATIONS, TAGS
from tests.support.installation import ROOT
from tests.support.served_edge import ServedEdge

METHODS_WITHOUT_BODY = ("get", "head", "delete")
LOOK_AROUND = re.compile(r"\(\?[=!<]")


async def read_document(edge: ServedEdge) -> Any:
    return (await edge.anyone.get("/openapi.json")).json()


def operations(document: Any) -> list[tuple[str, str, Any]]:
    return [(path, method, found) for path, item in document["paths"].items() for method, found in item.items()]


async def test_it_is_open_and_the_same_for_a_key_at_the_older_path(edge: ServedEdge):
    document = await read_document(edge)
    assert document == (await edge.ann.get("/schema/openapi.json")).json()
    assert {(path, method) for path, method, _ in operations(document)} == set(OPERATIONS)


async def test_every_operation_and_field_has_a_description_and_an_example(edge: ServedEdge):
    document = await read_document(edge)
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    assert {"submitJob", "cancelJob", "listHosts"} <= set(names)
    for path, method, operation in operations(document):
        where = (path, method)
        assert operation["tags"][0] in TAGS, where
        assert operation["summary"], where
        assert operation["description"], where
        assert "default" not in operation["responses"], where
        for parameter in operation["parameters"]:
            assert parameter["description"], (where, parameter)
            assert parameter["example"] is not None, (where, parameter)
    for name, schema in document["components"]["schemas"].items():
        assert schema.get("description"), name
        for field, inner in schema.get("properties", {}).items():
            assert inner["description"], (name, field)
            assert "examples" in inner or "$ref" in inner, (name, field)


async def test_the_examples_fit_their_schemas(edge: ServedEdge):
    document = await read_document(edge)
    count = 0

    def check(schema: Any, value: Any) -> None:
        nonlocal count
        count += 1
        jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(value)

    for name, schema in document["components"]["schemas"].items():
        for example in schema.get("examples", ()):
            check({"$ref": f"#/components/schemas/{name}"}, example)
    for _, _, operation in operations(document):
        for parameter in operation["parameters"]:
            check(parameter["schema"], parameter["example"])
        for holder in (operation.get("requestBody", {}), *operation["responses"].values()):
            for content in holder.get("content", {}).values():
                if "example" in content:
                    check(content["schema"], content["example"])
    assert count > 300


async def test_types_stand_once_and_patterns_are_for_re2(edge: ServedEdge):
    document = await read_document(edge)
    assert not LOOK_AROUND.search(json.dumps(find_all(document, "pattern")))
    for path, method, operation in operations(document):
        for holder in (operation.get("requestBody", {}), *operation["responses"].values()):
            for content in holder.get("content", {}).values():
                assert (
                    "properties" not in content["schema"]
                    or "job" in content["schema"]["properties"]
                    or ("file" in content["schema"]["properties"])
                ), (path, method)
    submission = document["components"]["schemas"]["Submission"]
    assert submission["properties"]["input"]["additionalProperties"] is True
    event = document["components"]["schemas"]["Event"]
    assert set(event["discriminator"]["mapping"]) == {"state", "progress", "log", "notice"}
    assert not [
        path for path, method, _ in operations(document) if method == "head" and "get" in document["paths"][path]
    ]


def find_all(value: Any, key: str) -> list[Any]:
    """Return the values under `key`, at any depth."""
    if isinstance(value, list):
        return [found for item in value for found in find_all(item, key)]
    if not isinstance(value, dict):
        return []
    own = [value[key]] if isinstance(value.get(key), str) else []
    return own + [found for item in value.values() for found in find_all(item, key)]


async def test_a_stream_names_the_types_of_its_messages(edge: ServedEdge):
    document = (await edge.anyone.get("/openapi.json")).json()
    for path in ("/v1/events", "/v1/jobs/{job_id}/events"):
        answer = document["paths"][path]["get"]["responses"]["200"]
        schema = answer["content"]["text/event-stream"]["schema"]
        assert (schema["type"], schema["contentMediaType"]) == ("string", "text/event-stream")
        assert schema["contentSchema"]["items"] == {"$ref": "#/components/schemas/Event"}
        for name in ("StateEvent", "ProgressMessage", "LogMessage", "NoticeMessage"):
            assert f"`{name}`" in answer["description"]


def test_the_chinese_of_the_reference_page_names_only_what_is_there():
    texts = (ROOT / "edge" / "reference" / "texts.js").read_text()
    named = re.findall(r"^  (\w+): \"", texts, re.MULTILINE)
    assert set(named) <= {note.id for note in OPERATIONS.values()} | set(TAGS)
    assert len(named) > len(TAGS)


async def test_the_tables_name_nothing_that_is_not_there(edge: ServedEdge):
    document = await read_document(edge)
    schemas = document["components"]["schemas"]
    fields = {field for schema in schemas.values() for field in schema.get("properties", {})}
    for component, notes in FIELDS.items():
        known = fields if component == "*" else set(schemas[component]["properties"])
        assert set(notes) <= known, component
    used = {(one["in"], one["name"]) for _, _, operation in operations(document) for one in operation["parameters"]}
    assert set(PARAMETERS) <= used


async def test_the_page_is_open_and_its_policy_allows_only_its_own_files(edge: ServedEdge):
    page = await edge.anyone.get("/docs")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for name in re.findall(r'(?:src|href)="(/docs/[^"]+)"', page.text):
        assert (await edge.anyone.get(name)).status_code == 200, name
    assert (await edge.anyone.get("/docs/app.py")).status_code == 404


@pytest.mark.parametrize(
    ("path", "known", "similar"),
    [
        ("/v1/jobs?state=failed", "status", "status"),
        ("/v1/jobs?statsu=failed", "status", "status"),
        ("/v1/usage?since=2026-01-01", "from", ""),
        ("/v1/assets?page=2", "cursor", ""),
        ("/livez?verbose=1", "owner", ""),
    ],
)
async def test_an_unknown_query_parameter_is_refused_with_the_known_ones(edge: ServedEdge, path, known, similar):
    reply = await edge.ann.get(path)
    assert (reply.status_code, reply.json()["code"]) == (400, "field_unknown")
    message = reply.json()["errors"][0]["message"]
    assert known in message
    assert f"did you mean {similar}?" in message or not similar


async def test_an_unknown_query_parameter_is_refused_on_every_route(edge: ServedEdge):
    for route in ROUTES:
        for method in getattr(route, "http_methods", ()):
            if method == "HEAD" or route.opt.get("any_parameter"):
                continue
            for path in route.paths:
                bare = re.sub(r"\{[a-z0-9_]+:str\}", "x", path)
                reply = await edge.admin.request(method, f"{bare}?surprise=1", headers={"Tus-Resumable": "1.0.0"})
                assert (reply.status_code, reply.json()["code"]) == (400, "field_unknown"), (method, path, reply.text)


async def test_the_parameters_of_a_route_are_listed_once(edge: ServedEdge):
    """Litestar gives each guard a copy of the handler: a cache of what a guard finds would grow with each request."""
    await edge.ann.get("/v1/jobs?limit=1")
    listed = request_input.list_known_parameters.cache_info().misses
    await edge.ann.get("/v1/jobs?limit=2")
    assert request_input.list_known_parameters.cache_info().misses == listed


async def test_programs_of_other_services_may_send_any_parameter(edge: ServedEdge):
    assert (await edge.ann.get("/v2/echo/health?surprise=1")).status_code == 200


async def test_a_mistake_in_the_input_names_the_known_fields(edge: ServedEdge):
    reply = await edge.ann.post("/v1/jobs", json={"endpoint": "echo", "input": {"txt": "hi"}})
    (error,) = reply.json()["errors"]
    assert error["path"] == "$.input.txt"
    assert "did you mean text? It takes" in error["message"]
    reply = await edge.ann.post("/v1/jobs", json={"endpoint": "echo", "inputs": {}})
    (error,) = reply.json()["errors"]
    assert error["path"] == "$.inputs"
    assert "did you mean input? It takes await_input, deadline, endpoint, input" in error["message"]
    chinese = await edge.ann.get("/v1/jobs?statsu=1", headers={"Accept-Language": "zh"})
    assert "是否想写 status" in chinese.json()["errors"][0]["message"]
