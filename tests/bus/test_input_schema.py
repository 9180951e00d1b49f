"""Which input schemas may be offered; tests/attack/test_l1_input_schemas.py has those that may not."""

from typing import Any

import pytest

from bus.input_schema import CHAIN_LIMIT, SUBSCHEMAS_LIMIT, check_input_schema
from schemas.endpoint import EndpointInvalid

TREE = {"type": "object", "properties": {"leaves": {"type": "array", "items": {"$ref": "#"}}}}


def chain(length: int) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "object"}
    for _ in range(length - 1):
        made = {"allOf": [made]}
    return made


@pytest.mark.parametrize(
    "schema",
    [
        {},
        TREE,
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://example.com/x", **TREE},
        {
            "properties": {"a": {"$ref": "#/$defs/a~1b~0c"}, "b": {"$ref": "#/$defs/50%25"}},
            "$defs": {"a/b~c": {}, "50%": {}},
        },
        {"properties": {"pattern": {"type": "string"}, "$ref": {"type": "string"}, "$anchor": {}}},
        {"properties": {"a": {"default": {"pattern": "("}, "enum": [{"$ref": "nowhere"}]}}},
        {"properties": {"a": {"pattern": r"^\p{L}{1,20}$"}, "b": {"pattern": r"^\d{1,1000}(?:a|b)+?\/$"}}},
        {"oneOf": [{"required": ["a"]}, True, {"not": False}]},
        chain(CHAIN_LIMIT),
        {"allOf": [{}] * (SUBSCHEMAS_LIMIT - 1)},
    ],
)
def test_it_may_be_offered(schema: dict[str, Any]) -> None:
    check_input_schema(schema)


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (chain(CHAIN_LIMIT + 1), "lie in one another"),
        ({"properties": {"a": {"$ref": "#/$defs/missing"}}}, "refer to #/"),
        ({"properties": {"a": {"$ref": "#name"}}}, "refer to #/"),
        ({"properties": {"a": {"$id": "x"}}}, "below the top"),
        ({"properties": {"a": {"type": "nonsense"}}}, r"not a JSON Schema: .*\$\.properties\.a"),
        ({"properties": 5}, "not a JSON Schema"),
        ({"allOf": {"a": {}}}, "not a JSON Schema"),
        ({"properties": {"a": {"$ref": 5}}}, "not a JSON Schema"),
        ({"properties": {"a": {"patternProperties": ["("]}}}, "not a JSON Schema"),
    ],
)
def test_it_may_not_and_the_author_is_told_where(schema: dict[str, Any], why: str) -> None:
    with pytest.raises(EndpointInvalid, match=why):
        check_input_schema(schema)
