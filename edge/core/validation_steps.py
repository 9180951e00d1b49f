"""A JSON Schema validator with a step budget: it stops when a check needs more steps than the budget has.

A step takes about 5 µs. Each keyword spends its steps before it works. So no schema and no input can block a thread for
long: not by `$ref` and `allOf` that multiply, not by `uniqueItems` of objects, not by an expensive pattern.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import msgspec
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from bus.input_schema import compile_pattern

_Keyword = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]

# Measured; a step is about 5 µs (docs/decisions/059-steps-bound-an-input-schema.md).
_REFERENCE_STEPS = 12
_COMPILE_STEPS = 1_000
_PATTERN_BYTES = 300  # bytes of text x instructions of the pattern in a step, for the slowest engine of RE2
_MESSAGE_CHARACTERS = 300  # in a step; an error message quotes the value
_COMPARED_BYTES = 100  # in a step


class StepLimitExceeded(Exception):
    """The check needs more steps than its budget has."""


class _StepBudget:
    def __init__(self, left: int) -> None:
        self.left = left


_steps: ContextVar[_StepBudget] = ContextVar("step budget")


@contextmanager
def limit_steps(steps: int) -> Iterator[None]:
    """Give the block a budget of `steps`: `spend_steps` raises StepLimitExceeded when it is used up."""
    token = _steps.set(_StepBudget(steps))
    try:
        yield
    finally:
        _steps.reset(token)


def spend_steps(steps: int) -> None:
    """Take `steps` from the budget. Raises StepLimitExceeded if fewer are left."""
    budget = _steps.get()
    budget.left -= steps
    if budget.left < 0:
        raise StepLimitExceeded


@lru_cache(maxsize=256)
def _compile_pattern(pattern: str) -> Any:
    """Return a compiled pattern from the cache. 256 patterns take at most 256 MiB, usually a few KiB each."""
    spend_steps(_COMPILE_STEPS)
    return compile_pattern(pattern)


def _matches(pattern: str, text: str) -> bool:
    compiled = _compile_pattern(pattern)
    spend_steps(1 + len(text.encode()) * compiled.programsize // _PATTERN_BYTES)
    return compiled.search(text) is not None


def _check_pattern(validator: Any, pattern: str, instance: Any, _: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "string") and not _matches(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _check_pattern_properties(
    validator: Any, patterns: Mapping[str, Any], instance: Any, _: Any
) -> Iterator[ValidationError]:
    if validator.is_type(instance, "object"):
        for pattern, inner in patterns.items():
            for name, value in instance.items():
                if _matches(pattern, name):
                    yield from validator.descend(value, inner, path=name, schema_path=pattern)


def _check_additional_properties(validator: Any, allowed: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    spend_steps(len(instance))
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    names = [name for name in instance if name not in known]
    extra = [name for name in names if not any(_matches(pattern, name) for pattern in patterns)]
    if isinstance(allowed, Mapping):
        for name in extra:
            yield from validator.descend(instance[name], allowed, path=name)
    elif not allowed and extra:
        quoted = ", ".join(repr(name) for name in sorted(extra))
        were = "was" if len(extra) == 1 else "were"
        yield ValidationError(f"Additional properties are not allowed ({quoted} {were} unexpected)")


def _keyword_cost(word: str, value: Any, instance: Any) -> int:
    """Return the steps of a keyword, without the steps of its inner schemas."""
    own: int = 1 + (len(value) if isinstance(value, dict | list) else 0)
    if word == "$ref":
        return _REFERENCE_STEPS + str(value).count("/")
    if word == "dependentRequired":
        own += sum(map(len, value.values()))
    elif not isinstance(instance, dict | list):
        pass
    elif word in {"items", "contains", "propertyNames"}:
        own += len(instance)
    elif word == "uniqueItems" and value:
        own += _unique_items_cost(instance)
    elif word in {"enum", "const"}:
        own *= _comparison_cost(instance)
    return own


def _unique_items_cost(items: Any) -> int:
    """Return the steps to find equal items: jsonschema sorts texts or numbers, and compares all pairs of others."""
    if all(isinstance(item, str) for item in items) or all(type(item) in {int, float} for item in items):
        return 1 + len(items) // 4
    return 1 + len(items) * max(_comparison_cost(items), len(items) // 2)


def _comparison_cost(value: Any) -> int:
    return 1 + len(msgspec.json.encode(value)) // _COMPARED_BYTES


def _count_steps_of(word: str, keyword: _Keyword) -> _Keyword:
    """Return `keyword` as a function that spends steps for its work and for the text of each error."""

    def counted(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        spend_steps(_keyword_cost(word, value, instance))
        for error in keyword(validator, value, instance, schema) or ():
            spend_steps(1 + len(error.message) // _MESSAGE_CHARACTERS)
            yield error

    return counted


_REPLACED_KEYWORDS: dict[str, _Keyword] = {
    "pattern": _check_pattern,
    "patternProperties": _check_pattern_properties,
    "additionalProperties": _check_additional_properties,
}
_keywords: dict[str, _Keyword] = Draft202012Validator.VALIDATORS | _REPLACED_KEYWORDS
StepValidator = extend(
    Draft202012Validator, {word: _count_steps_of(word, keyword) for word, keyword in _keywords.items()}
)
