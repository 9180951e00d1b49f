"""L1: an endpoint's input schema that never ends: patterns that backtrack, `$ref` that recurse or multiply.

A host that has joined may offer any schema, and a tenant then sends the input that costs most.
"""

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec import structs

from edge.core.validation import validate_input
from runner.endpoints import load_endpoints
from schemas.endpoint import Endpoint, EndpointInvalid
from schemas.host import HostCapabilities
from schemas.problems import ProblemError
from tests.edge.routes.conftest import edge
from tests.edge.services.conftest import fake
from tests.support.edge_services import ECHO_ENDPOINT, START, FakeBusServicesRig
from tests.support.installation import ROOT
from tests.support.served_edge import ServedEdge

__all__ = ["edge", "fake"]

BACKTRACKS: dict[str, Any] = {"type": "object", "properties": {"text": {"type": "string", "pattern": "^(a+)+$"}}}
NAMES = {"patternProperties": {"^(a+)+$": {}}, "additionalProperties": False}
WITHIN_S = 30  # an attack that is not stopped takes hours


def doubled(levels: int, last: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that applies `last` 2^levels times. Chains of more than 16 schemas are rejected."""
    made = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(levels)}
    return {"properties": {"x": {"$ref": "#/$defs/a0"}}, "$defs": {**made, f"a{levels}": last}}


TREE = {"allOf": [{"properties": {"x": {"$ref": "#"}}}, {"properties": {"x": {"$ref": "#"}}}]}
NEST: Any = {}
for _ in range(50):
    NEST = {"x": NEST}

REFUSED = {
    "itself": {"$ref": "#"},
    "in a circle": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}},
    },
    "elsewhere": {"$ref": "http://127.0.0.1:1/x.json"},
    "into data": {"properties": {"a": {"default": {"pattern": "("}}, "b": {"$ref": "#/properties/a/default"}}},
    "a long chain": doubled(30, {}),
    "look-around": {"properties": {"a": {"pattern": "^(?=a)"}}},
    "back-reference": {"patternProperties": {r"(a)\1": {}}},
    "a large pattern": {"properties": {"a": {"pattern": "((a{1,30}){1,30}){1,30}"}}},
    "brackets": {"properties": {"a": {"pattern": "(" * 5_000}}},
    "another validator": {"properties": {"a": {"$schema": "https://json-schema.org/draft/2020-12/schema"}}},
    "a dynamic reference": {"$dynamicRef": "#"},
    "uncounted walks": {"unevaluatedProperties": False},
    "many schemas": {"allOf": [{} for _ in range(501)]},
    "many patterns": {"patternProperties": {f"^{n}$": {} for n in range(65)}},
    "64 KiB": {"description": "x" * 65_536},
    "no schema": {"type": "nonsense"},
}
# What may be offered, and costs much: with the input that does.
COSTLY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "references that multiply by the depth": (TREE, NEST),
    "objects compared each with each": (
        {"properties": {"x": {"uniqueItems": True}}},
        {"x": [{"k": n} for n in range(5_000)]},
    ),
    "many references for each item": (
        {"properties": {"x": {"items": {"allOf": [{"$ref": "#/$defs/a"}] * 200}}}, "$defs": {"a": {"type": "integer"}}},
        {"x": [1] * 20_000},
    ),
    "choices of files": (
        {"allOf": [{"properties": {"x": {"items": {"format": "asset"}}}}] * 100},
        {"x": [1] * 20_000},
    ),
    "defaults that are large": (
        {"properties": {"x": {"items": {"properties": {"d": {"default": "x" * 60_000}}}}}},
        {"x": [{}] * 20_000},
    ),
    "a large pattern": (
        {"properties": {"x": {"pattern": f"(?:{'|'.join(['(?:x?){99}'] * 90)})$"}}},
        {"x": "x" * 60_000 + "c"},
    ),
}


def endpoint(schema: dict[str, Any], name: str = "hostile") -> Endpoint:
    return structs.replace(ECHO_ENDPOINT, name=name, input=schema)


async def offer(world: FakeBusServicesRig, *endpoints: Endpoint) -> None:
    made = HostCapabilities(host="evil", incarnation="i", at=START + timedelta(hours=1), endpoints=endpoints, slots=1)
    await world.bus.capabilities.put("evil", made)
    await world.endpoints.refresh()


@asynccontextmanager
async def turns() -> AsyncIterator[list[int]]:
    """Return how often other tasks ran on the event loop in the meantime."""
    counted = [0]

    async def others() -> None:
        while True:
            counted[0] += 1
            await anyio.sleep(0.001)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(others)
        yield counted
        tasks.cancel_scope.cancel()


# jsonschema takes its own validator, and `re`, for a schema that a `$ref` finds with "$schema" in it.
NAMED = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "properties": {"x": {"$ref": "#"}, **BACKTRACKS["properties"]},
}


@pytest.mark.parametrize(
    ("schema", "given"),
    [
        (NAMED, {"x": {"text": "a" * 30_000 + "b"}}),
        (BACKTRACKS, {"text": "a" * 60_000 + "b"}),
        (NAMES, {"a" * 60_000 + "b": 1}),
    ],
)
def test_a_pattern_never_backtracks(schema: dict[str, Any], given: dict[str, Any]) -> None:
    """Run the check in a process of its own: `re` would block this one for too long."""
    program = (
        "import anyio\nfrom edge.core.validation import validate_input\nfrom schemas.endpoint import Endpoint\n"
        "from schemas.problems import ProblemError\n"
        f"schema, given = {schema!r}, {given!r}\n"
        "try:\n    anyio.run(validate_input, Endpoint(name='x', image='x', input=schema), given)\n"
        "except ProblemError as problem:\n    print(problem.code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=WITHIN_S
    )
    assert done.stdout == "input_invalid\n"


@pytest.mark.parametrize("name", REFUSED)
async def test_an_offer_of_it_is_set_aside_with_its_reason_and_others_work(fake: FakeBusServicesRig, name: str) -> None:
    await offer(fake, endpoint(REFUSED[name]), endpoint({"type": "object"}, "fine"))
    assert [known.name for known in fake.endpoints.all()] == ["echo", "fine"]
    with pytest.raises(ProblemError, match="a host offers 'hostile', but its schema is not valid: ") as refused:
        await fake.jobs.submit("ann", {"endpoint": "hostile", "input": {"a": "b"}})
    assert refused.value.code == "endpoint_unknown"
    assert (await fake.jobs.submit("ann", {"endpoint": "fine", "input": {}})).entry.record.job.endpoint == "fine"


async def test_an_offer_that_is_refused_does_not_replace_the_endpoint(fake: FakeBusServicesRig) -> None:
    await offer(fake, endpoint(REFUSED["itself"], "echo"))
    assert fake.endpoints.get("echo") == ECHO_ENDPOINT


@pytest.mark.parametrize("pattern", ["^(?=a)", r"(a)\\1", "("])
def test_the_author_is_told_by_the_runner(tmp_path: Path, pattern: str) -> None:
    text = f'name = "a"\nimage = "a"\n[input.properties.x]\npattern = "{pattern}"\n'
    (tmp_path / "endpoint.toml").write_text(text)
    with pytest.raises(EndpointInvalid, match=r"endpoint\.toml: the pattern .* cannot be used .*RE2"):
        load_endpoints([tmp_path])


@pytest.mark.parametrize("name", COSTLY)
async def test_what_costs_much_is_refused_while_others_have_their_turns(fake: FakeBusServicesRig, name: str) -> None:
    schema, given = COSTLY[name]
    await offer(fake, endpoint(schema))
    async with turns() as counted:
        with anyio.fail_after(WITHIN_S), pytest.raises(ProblemError, match="steps to check") as refused:
            await validate_input(fake.endpoints.get("hostile"), given)  # its only wait is for the thread
    assert refused.value.code == "input_invalid"
    assert counted[0] > 0


async def test_a_large_input_that_fits_is_taken(fake: FakeBusServicesRig) -> None:
    schema = {"properties": {"x": {"items": {"type": "integer", "minimum": 0}}, "t": {"pattern": "^[a-z]+$"}}}
    given = {"x": [1] * 20_000, "t": "a" * 10_000}
    assert (await validate_input(endpoint(schema), given)).input == given


async def test_over_http_it_is_an_error_of_the_input(edge: ServedEdge) -> None:
    await offer(edge.world, endpoint(BACKTRACKS), endpoint(REFUSED["itself"], "loop"))
    with anyio.fail_after(WITHIN_S):
        body = {"endpoint": "hostile", "input": {"text": "a" * 27 + "b"}}
        assert (await edge.ann.post("/v1/jobs", json=body)).status_code == 422
        reply = await edge.ann.post("/v1/jobs", json={"endpoint": "loop", "input": {}})
    assert reply.json()["code"] == "endpoint_unknown"
    assert "refers to itself without end" in reply.json()["detail"]
