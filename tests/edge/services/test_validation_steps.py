"""The validator with a step budget finds the same errors as jsonschema, and stops when the budget is used up."""

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from edge.core.validation import StepLimitExceeded, StepValidator, check_within, limit_steps, spend_steps
from schemas.endpoint import Endpoint

PATTERNS = {"properties": {"a": {}}, "patternProperties": {"^x-[a-z]+$": {"type": "string", "pattern": "^[0-9]{2}$"}}}
CASES: list[tuple[dict[str, Any], Any]] = [
    ({"pattern": "^[a-z]+$"}, "abc"),
    ({"pattern": "^[a-z]+$"}, "ABC"),
    ({"pattern": "b"}, "abc"),
    ({"pattern": "^a"}, 5),
    (PATTERNS, {"x-a": "12", "x-b": "1", "x-c": 5, "other": 1}),
    (PATTERNS | {"additionalProperties": False}, {"a": 1, "x-a": "12"}),
    (PATTERNS | {"additionalProperties": {"type": "integer"}}, {"a": 1, "x-a": "12", "b": "no", "c": 2}),
    ({"additionalProperties": False}, {"b": 1, "a": 2}),
    ({"additionalProperties": False}, [1]),
    ({"uniqueItems": True}, [{"a": 1}, {"a": 1}]),
    ({"uniqueItems": True}, [1, True, "1"]),
    ({"uniqueItems": False}, [1, 1]),
    ({"enum": [[1], {"a": 1}]}, {"a": 1}),
    ({"oneOf": [{"type": "integer"}, {"minimum": 3}]}, 5),
    ({"if": {"type": "integer"}, "then": {"minimum": 3}, "else": {"type": "string"}}, 1),
    ({"dependentRequired": {"a": ["b"]}}, {"a": 1}),
    ({"properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "null"}}}, {"a": 1}),
    ({"properties": {"a": {"type": "null", "$ref": "#/$defs/n"}}, "$defs": {"n": {"minimum": 3}}}, {"a": 1}),
    ({"properties": {"a": {"type": "integer", "minimum": 2, "title": "n"}, "b": {"enum": [1]}}}, {"a": 1, "b": 2}),
    ({"properties": {"a": {"type": "integer", "minimum": 2, "title": "n"}, "b": {"enum": [1]}}}, {"a": 2, "b": 1}),
    ({"properties": {"a": {"type": ["string", "null"], "maxLength": 1}, "b": True, "c": False}}, {"a": "xy", "c": 0}),
    ({"properties": {"a": {"type": "object", "properties": {"b": {"const": 1}}}}}, {"a": {"b": 2}}),
    ({"properties": {"a": {"type": "array", "uniqueItems": True, "items": {"type": "null"}}}}, {"a": [1, 1]}),
    ({"properties": {"a": {"not": {"type": "null"}}, "b": {"required": ["c"]}}}, {"a": None, "b": {}}),
    ({"properties": {"a": {"type": "null"}}}, [{"a": 1}]),
]


@pytest.mark.parametrize(("schema", "given"), CASES)
def test_it_finds_what_jsonschema_finds(schema: dict[str, Any], given: Any) -> None:
    with limit_steps(1_000_000):
        ours = [(error.json_path, error.message) for error in StepValidator(schema).iter_errors(given)]
    assert ours == [(error.json_path, error.message) for error in Draft202012Validator(schema).iter_errors(given)]


TYPES = ("string", "boolean", "integer", "number", "array", "object", "null", ["null", "integer"], ["string", "array"])


@pytest.mark.parametrize("value", ["", True, False, 0, 1, 1.0, 1.5, 10**30, [], {}, None], ids=repr)
@pytest.mark.parametrize("types", TYPES, ids=str)
def test_each_value_has_the_types_that_jsonschema_gives_it(types: Any, value: Any) -> None:
    test_it_finds_what_jsonschema_finds({"type": types}, value)
    test_it_finds_what_jsonschema_finds({"properties": {"a": {"type": types}}}, {"a": value})


def test_the_keywords_of_a_valid_property_take_steps() -> None:
    schema = StepValidator({"properties": {"a": {"type": "integer", "title": "n", "minimum": 1}}})
    with limit_steps(4):  # 2 of `properties`, one of each keyword
        assert schema.is_valid({"a": 1})
    with limit_steps(3), pytest.raises(StepLimitExceeded):
        schema.is_valid({"a": 1})


def test_names_that_are_not_allowed_are_reported() -> None:
    with limit_steps(10_000):
        (error,) = StepValidator(PATTERNS | {"additionalProperties": False}).iter_errors({"z": 1, "y": 2, "a": 3})
    assert error.message == "Additional properties are not allowed ('y', 'z' were unexpected)"


def test_the_end_of_a_pattern_is_the_end_of_the_text() -> None:
    with limit_steps(10_000):
        assert not StepValidator({"pattern": "^a$"}).is_valid("a\n")


def test_steps_are_taken_until_none_is_left() -> None:
    with limit_steps(5):
        spend_steps(5)
        with pytest.raises(StepLimitExceeded):
            spend_steps(1)


def test_steps_of_one_check_are_not_those_of_the_next() -> None:
    endpoint = Endpoint(name="x", image="x", input={"required": ["a"]})
    for _ in range(3):
        assert check_within(10, endpoint, {"a": 1}).input == {"a": 1}
    with pytest.raises(StepLimitExceeded):
        check_within(1, endpoint, {"a": 1})
