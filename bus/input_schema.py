"""Check the input schema of an endpoint. A runner checks its own, an edge those of every host's capabilities.

A schema that is refused here could stop an edge, or fail, when it checks a job's input. The steps of a check bound what
remains (edge/core/validation.py). See docs/decisions/059-steps-bound-an-input-schema.md.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import msgspec
import re2
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from schemas.endpoint import EndpointInvalid
from schemas.job import NESTING_LIMIT, is_too_deep

SCHEMA_BYTES = 64 * 1024  # as JSON
SUBSCHEMAS_LIMIT = 500  # jsonschema checks one against the metaschema in 1.5 ms
PATTERNS_LIMIT = 64
CHAIN_LIMIT = 16  # schemas in one another, or by `$ref`, that apply to the same value
PATTERN_MEMORY_BYTES = 1024 * 1024  # of a compiled pattern and its automaton

_SCHEMA_KEYWORDS = ("additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then")
_SCHEMA_LIST_KEYWORDS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SCHEMA_MAP_KEYWORDS = ("$defs", "dependentSchemas", "patternProperties", "properties")
_SAME_VALUE_KEYWORDS = frozenset({"allOf", "anyOf", "dependentSchemas", "else", "if", "not", "oneOf", "then"})
# jsonschema evaluates the first two by walks and searches that no step counts; the others move what a `$ref` means.
_REFUSED_KEYWORDS = ("unevaluatedItems", "unevaluatedProperties", "$anchor", "$dynamicAnchor", "$dynamicRef")


def compile_pattern(pattern: str) -> Any:
    """Compile a pattern for an engine that never backtracks. Raises EndpointInvalid, saying what it cannot do."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = PATTERN_MEMORY_BYTES
    try:
        return re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError) as error:
        why = error.args[0].decode(errors="replace") if isinstance(error, re2.error) else "not text"
        raise EndpointInvalid(
            f"the pattern {pattern[:80]!r} cannot be used ({why[:120]}): write it in the syntax of RE2, "
            "which has no look-around and no back-references, and give lengths by maxLength"
        ) from error


def check_input_schema(schema: dict[str, Any]) -> None:
    """Check that an endpoint may have this schema. Raises EndpointInvalid. May take 1 s, so not on an event loop."""
    if is_too_deep(schema):
        raise EndpointInvalid(f"input is nested deeper than {NESTING_LIMIT} levels: flatten it")
    try:
        size = len(msgspec.json.encode(schema))
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise EndpointInvalid(f"input cannot be written as JSON: {error}") from error
    if size > SCHEMA_BYTES:
        raise EndpointInvalid(f"input has {size} bytes of JSON, at most {SCHEMA_BYTES}: shorten it")
    found = _find_subschemas(schema)
    try:
        Draft202012Validator.check_schema(schema, format_checker=None)  # a checker would compile patterns by `re`
    except RecursionError as error:
        raise EndpointInvalid("input nests schemas too deep to check them: flatten it") from error
    except SchemaError as error:
        raise EndpointInvalid(f"input is not a JSON Schema: {error.message[:300]}, at {error.json_path}") from error
    _check_patterns(found)
    _ChainLimit(found).check()


def _find_subschemas(schema: dict[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return every schema in `schema` that is an object, by JSON Pointer. Raises EndpointInvalid for too many."""
    found: dict[str, Mapping[str, Any]] = {"": schema}
    left = [""]
    while left:
        at = left.pop()
        for _, place, inner in _iterate_subschemas(found[at], at):
            if isinstance(inner, Mapping):
                found[place] = inner
                left.append(place)
        if len(found) > SUBSCHEMAS_LIMIT:
            raise EndpointInvalid(f"input holds more than {SUBSCHEMAS_LIMIT} schemas: use fewer")
    return found


def _iterate_subschemas(schema: Mapping[str, Any], at: str) -> Iterator[tuple[str, str, object]]:
    """Yield keyword, pointer and value of each schema directly in `schema`."""
    for word in _SCHEMA_KEYWORDS:
        if word in schema:
            yield word, f"{at}/{word}", schema[word]
    for word in _SCHEMA_LIST_KEYWORDS:
        choices = schema.get(word)
        for number, inner in enumerate(choices if isinstance(choices, list) else ()):
            yield word, f"{at}/{word}/{number}", inner
    for word in _SCHEMA_MAP_KEYWORDS:
        named = schema.get(word)
        for name, inner in (named if isinstance(named, Mapping) else {}).items():
            yield word, f"{at}/{word}/{name.replace('~', '~0').replace('/', '~1')}", inner


def _check_patterns(found: Mapping[str, Mapping[str, Any]]) -> None:
    patterns = [pattern for schema in found.values() for pattern in schema.get("patternProperties", ())]
    patterns += [schema["pattern"] for schema in found.values() if "pattern" in schema]
    if len(patterns) > PATTERNS_LIMIT:
        raise EndpointInvalid(f"input holds {len(patterns)} patterns, at most {PATTERNS_LIMIT}: use fewer")
    for pattern in patterns:
        compile_pattern(pattern)


class _ChainLimit:
    """Follows the schemas that apply to one value, each once."""

    def __init__(self, found: Mapping[str, Mapping[str, Any]]) -> None:
        self._found = found
        self._lengths: dict[str, int] = {}

    def check(self) -> None:
        for place, schema in self._found.items():
            for word in _REFUSED_KEYWORDS:
                if word in schema:
                    raise EndpointInvalid(
                        f"{word} at #{place} is not supported: use additionalProperties, items, $defs"
                    )
            for word in {"$id", "$schema"} & schema.keys() if place else ():
                raise EndpointInvalid(f"{word} at #{place} is not supported below the top of a schema: leave it out")
            self._length(place, ())

    def _length(self, place: str, before: tuple[str, ...]) -> int:
        if place in before:
            raise EndpointInvalid(
                f"the schema at #{place} refers to itself without end: refer to it for an inner value"
            )
        if len(before) >= CHAIN_LIMIT:
            raise EndpointInvalid(
                f"more than {CHAIN_LIMIT} schemas lie in one another for one value at #{before[0]}: flatten them"
            )
        if place not in self._lengths:
            below = [self._length(inner, (*before, place)) for inner in self._same_value(place)]
            self._lengths[place] = 1 + max(below, default=0)
        if len(before) + self._lengths[place] > CHAIN_LIMIT:
            raise EndpointInvalid(
                f"more than {CHAIN_LIMIT} schemas lie in one another for one value at #{place}: flatten them"
            )
        return self._lengths[place]

    def _same_value(self, place: str) -> Iterator[str]:
        schema = self._found[place]
        for word, inner, value in _iterate_subschemas(schema, place):
            if word in _SAME_VALUE_KEYWORDS and isinstance(value, Mapping):
                yield inner
        reference = schema.get("$ref")
        if reference is not None:
            yield self._target(reference, place)

    def _target(self, reference: str, place: str) -> str:
        pointer = unquote(reference[1:])
        if not reference.startswith("#") or pointer not in self._found:
            raise EndpointInvalid(
                f"$ref {reference[:80]!r} at #{place} is not the place of a schema in this one: refer to #/$defs/NAME"
            )
        return pointer
