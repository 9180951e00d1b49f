"""Requests generated from our OpenAPI document, valid and broken.

Each response is quick and matches the document, and a rejected request leaves nothing behind.
"""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import anyio
import hypothesis
import msgspec
import pytest
import requests
import schemathesis
from anyio import from_thread, to_thread
from hypothesis import HealthCheck, Phase, Verbosity
from hypothesis import strategies as st
from schemathesis.core.failures import FailureGroup
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi import checks as said

from edge.app import ROUTES
from edge.http.openapi import CHUNK_MEDIA_TYPE
from schemas import events as e
from schemas.asset import DIGEST_SCHEME
from schemas.job import JobKey, Output, OutputFile
from schemas.problems import PROBLEM_TYPES, Problem
from tests.support.served_edge import ServedEdge, serve_edge

CHECKS = [
    said.status_code_conformance,
    said.content_type_conformance,
    said.response_headers_conformance,
    said.response_schema_conformance,
]
EXAMPLES = 10
SOON_S = 20.0
WAIT_S = 0.05  # what a long poll may ask for here
STREAMS = ("/v1/events", "/v1/jobs/{job_id}/events")
NOT_ALLOWED = 405
RANGE = 416
WITHOUT_BODY = {
    *("/v1/jobs/{job_id}/cancel", "/v1/jobs/{job_id}/retry", "/v1/deliveries/{delivery_id}/replay"),
    "/v1/session/tickets",
    "/v1/webhooks/{webhook_id}/test",
    *("/v1/jobs/{job_id}/secrets", "/v1/secret-key/rotate"),
    "/v1/notifications/test",
    *("/v1/endpoints/{name}/pause", "/v1/endpoints/{name}/resume", "/v1/hosts/{host}/maintenance"),
    "/v1/hosts/{host}/leave",
}
NOT_SET_UP = 501  # no machine may join the edge of these tests
TUS = {"Tus-Resumable": "1.0.0"}


schemathesis.serializer.alias(CHUNK_MEDIA_TYPE, "application/octet-stream")


def operations() -> list[tuple[str, str]]:
    """Return every method and path of the document, without the endless event streams."""
    found = {
        (method, path.replace(":str}", "}"))
        for route in ROUTES
        if getattr(route, "include_in_schema", False) is not False and hasattr(route, "http_methods")
        for method in route.http_methods
        for path in route.paths
    }
    described = {(method, path) for method, path in found if method != "HEAD" or ("GET", path) not in found}
    return sorted((method, path) for method, path in described if path not in STREAMS and method != "OPTIONS")


class Prepared(msgspec.Struct, frozen=True):
    """A served edge with one object of each kind, its document, and the existing names by path parameter.

    `schema` is the document as schemathesis reads it, once for all operations.
    """

    edge: ServedEdge
    document: Any
    schema: BaseSchema
    there: dict[str, list[str]]


@pytest.fixture(scope="module")
async def prepared(tmp_path_factory: pytest.TempPathFactory, anyio_backend: object) -> AsyncIterator[Prepared]:
    async with serve_edge(tmp_path_factory.mktemp("openapi")) as edge:
        ann = edge.ann
        digest = await edge.world.put("ann", b"0123456789", "out.txt")
        hook = {"url": "https://files.test/hook"}
        for name in ("waiting", "done"):
            await ann.put(f"/v1/jobs/{name}", json={"endpoint": "echo", "input": {"text": name}, "webhook": hook})
        key = JobKey("ann", "done")
        await edge.world.start((await edge.world.jobs.read(key)).record.job)
        await edge.world.write_event(
            key, e.Succeeded(Output((OutputFile("out.txt", digest, 10, "text/plain"),)), log=digest)
        )
        begun = await ann.post("/v1/uploads", headers=TUS | {"Upload-Length": "10"})
        deliveries = (await ann.get("/v1/jobs/waiting/deliveries")).json()["deliveries"]
        there = {
            "job_id": ["waiting", "done"],
            "name": ["out.txt", "echo"],
            "sha256": [digest, DIGEST_SCHEME + digest],
            "upload_id": [begun.headers["location"].rsplit("/", 1)[1]],
            "host": ["gpu-9"],
            "delivery_id": [row["id"] for row in deliveries] or ["none"],
        }
        document = (await ann.get("/schema/openapi.json")).json()
        yield Prepared(edge, document, schemathesis.openapi.from_dict(document), there)


async def test_no_operation_names_a_parameter_twice(prepared: Prepared):
    for path, item in prepared.document["paths"].items():
        for method, operation in item.items():
            named = [(one["in"], one["name"]) for one in operation.get("parameters", ())]
            assert len(named) == len(set(named)), (method, path)


async def test_every_body_is_in_the_document(prepared: Prepared):
    without = {
        path
        for path, item in prepared.document["paths"].items()
        for method in ("post", "put", "patch")
        if method in item and "requestBody" not in item[method]
    }
    assert without == WITHOUT_BODY


async def written(edge: ServedEdge) -> object:
    """Return everything that a request may leave behind."""
    world = edge.world
    bus, uploads = world.bus, world.upload_states._folder
    tables = (bus.asset_references, bus.tombstones, bus.api_keys, bus.power_records, bus.installation_constants)
    rows = [sorted((key, row.revision) for key, row in (await table.rows()).items()) for table in tables]
    records = sorted([(key, (await bus.job_store.read(key)).revision) for key in await bus.job_store.keys()], key=str)
    pieces = sorted((path.name, path.stat().st_size) for path in uploads.rglob("*") if path.is_file())
    return rows, records, sorted(world.store._assets), pieces


def refused(reply: schemathesis.Response) -> bool:
    """Return whether the response is an error, and check that its problem document has the status of its code."""
    if reply.status_code < 400:
        return False
    if reply.request.method != "HEAD" and reply.status_code != RANGE:
        problem = msgspec.json.decode(reply.content, type=Problem)
        assert reply.status_code == problem.status
        assert problem.status in {PROBLEM_TYPES[problem.code].status, NOT_ALLOWED}
    return True


@pytest.mark.parametrize(("method", "path"), operations(), ids=lambda part: part)
async def test_it_keeps_to_its_document(prepared: Prepared, method: str, path: str):
    edge = prepared.edge
    operation = prepared.schema[path][method]
    keys = {name: {"Authorization": f"Bearer {edge.texts[name]}"} for name in ("ann", "admin")}
    session = requests.Session()

    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
        verbosity=Verbosity.quiet,
    )
    @hypothesis.given(
        case=st.one_of(
            operation.as_strategy(),
            operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE),
        ),
        who=st.sampled_from(["ann", "admin", "nobody"]),
        known=st.fixed_dictionaries({name: st.sampled_from(names) for name, names in prepared.there.items()}),
        real=st.booleans(),
    )
    def each(case: schemathesis.Case, who: str, known: dict[str, str], real: bool) -> None:
        if real and case.path_parameters:
            case.path_parameters = {name: known.get(name, value) for name, value in case.path_parameters.items()}
        query = dict(case.query or {})
        if "wait" in query:
            query["wait"] = WAIT_S if isinstance(query["wait"], int | float) else query["wait"]
        case.query = query
        before = from_thread.run(written, edge)
        reply = case.call(edge.url, session=session, headers=keys.get(who), timeout=SOON_S)
        try:
            case.validate_response(reply, checks=CHECKS)
        except FailureGroup as failures:  # anyio's runner does not outlive a group that leaves a test
            raise AssertionError(str(failures)) from None
        assert reply.status_code < 500 or reply.status_code == NOT_SET_UP, reply.text
        if refused(reply):
            assert from_thread.run(written, edge) == before, "a refusal wrote something"

    with contextlib.closing(session), anyio.fail_after(100):
        await to_thread.run_sync(each)
