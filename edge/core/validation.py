"""Validation of requests: bodies as Structs, and a job's `input` against the JSON Schema of its endpoint.

Every fault is reported with its path. The schema (Draft 2020-12) also fills defaults.

A check has a step budget: short ones run on the event loop, long ones in a thread. A step takes about 5 µs. Each
keyword spends its steps before it works. So no schema and no input can block a thread for long: not by `$ref` and
`allOf` that multiply, not by `uniqueItems` of objects, not by an expensive pattern.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import msgspec
from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend
from msgspec import inspect
from referencing import Registry
from referencing.exceptions import Unresolvable

from bus.input_schema import compile_pattern
from edge.outbound import URL_PATTERN
from schemas.asset import InvalidDigest, asset_fields, parse_digest
from schemas.endpoint import Endpoint, EndpointInvalid
from schemas.job import INPUT_LIMIT_BYTES, NESTING_LIMIT, TOKEN_PATTERN, PendingUrl, is_too_deep
from schemas.problems import FieldError, ProblemError

T = TypeVar("T")

_Keyword = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]

# Measured; a step is about 5 µs (docs/decisions/059-steps-bound-an-input-schema.md).
_REFERENCE_STEPS = 12
_COMPILE_STEPS = 1_000
_PATTERN_BYTES_PER_STEP = 300  # bytes of text x instructions of the pattern, for the slowest engine of RE2
_MESSAGE_CHARACTERS_PER_STEP = 300  # an error message quotes the value
_COMPARED_BYTES_PER_STEP = 100

_CONTAINERS = (dict, list)  # `dict | list` is a new object at each call, and a check against it takes twice as long


class StepLimitExceeded(Exception):
    """The check needs more steps than its budget has."""


@dataclass
class _StepBudget:
    left: int


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
    spend_steps(1 + len(text.encode()) * compiled.programsize // _PATTERN_BYTES_PER_STEP)
    return compiled.search(text) is not None


# The JSON Schema types that a Python type surely has; jsonschema decides the others, as for 1.0, which is an integer.
_TYPE_NAMES: Mapping[type, tuple[str, ...]] = {
    str: ("string",),
    bool: ("boolean",),
    int: ("integer", "number"),
    float: ("number",),
    list: ("array",),
    dict: ("object",),
}


def _check_type(validator: Any, types: Any, instance: Any, _: Any) -> Iterator[ValidationError]:
    """Check as jsonschema does, but without its type checker for a value that surely has the type."""
    names = [types] if isinstance(types, str) else types
    sure = _TYPE_NAMES.get(type(instance), ())
    for name in names:
        if name in sure or validator.is_type(instance, name):
            return
    yield ValidationError(f"{instance!r} is not of type {', '.join(map(repr, names))}")


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


def _check_properties(validator: Any, schemas: Mapping[str, Any], instance: Any, _: Any) -> Iterator[ValidationError]:
    """Check as jsonschema does, but without a new validator for each valid property that has a plain schema."""
    if validator.is_type(instance, "object"):
        for name, inner in schemas.items():
            if name in instance and not _is_surely_valid(validator, instance[name], inner):
                yield from validator.descend(instance[name], inner, path=name, schema_path=name)


def _is_surely_valid(validator: Any, value: Any, schema: Any) -> bool:
    """Return whether `value` is valid. Always False for a schema with other keywords than _PLAIN_KEYWORDS."""
    if not isinstance(schema, dict):
        return False
    for word, expected in schema.items():
        keyword = _keywords.get(word)
        if keyword is None:
            continue
        if word not in _PLAIN_KEYWORDS:
            return False
        spend_steps(_keyword_cost(word, expected, value))
        for _ in keyword(validator, expected, value, schema) or ():
            return False
    return True


def _keyword_cost(word: str, value: Any, instance: Any) -> int:
    """Return the steps of a keyword, without the steps of its inner schemas."""
    own: int = 1 + (len(value) if isinstance(value, _CONTAINERS) else 0)
    if word == "$ref":
        return _REFERENCE_STEPS + str(value).count("/")
    if word == "dependentRequired":
        own += sum(map(len, value.values()))
    elif not isinstance(instance, _CONTAINERS):
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
    return 1 + len(msgspec.json.encode(value)) // _COMPARED_BYTES_PER_STEP


def _count_steps_of(word: str, keyword: _Keyword) -> _Keyword:
    """Return `keyword` as a function that spends steps for its work and for the text of each error."""

    def counted(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        spend_steps(_keyword_cost(word, value, instance))
        for error in keyword(validator, value, instance, schema) or ():
            spend_steps(1 + len(error.message) // _MESSAGE_CHARACTERS_PER_STEP)
            yield error

    return counted


_REPLACED_KEYWORDS: dict[str, _Keyword] = {
    "type": _check_type,
    "pattern": _check_pattern,
    "patternProperties": _check_pattern_properties,
    "properties": _check_properties,
    "additionalProperties": _check_additional_properties,
}
# Those that apply no other schema, so that they do not use the state of their validator.
_PLAIN_KEYWORDS = frozenset({"type", "enum", "const", "format", "pattern", "minLength", "maxLength", "multipleOf"}) | {
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems", "uniqueItems")
}
_keywords: dict[str, _Keyword] = Draft202012Validator.VALIDATORS | _REPLACED_KEYWORDS
StepValidator = extend(
    Draft202012Validator, {word: _count_steps_of(word, keyword) for word, keyword in _keywords.items()}
)

FIELD_ERROR_LIMIT = 20
_NAME_CHARACTERS_LIMIT = 64  # of an unknown field, in a path
_MESSAGE_CHARACTERS_LIMIT = 300  # jsonschema quotes the value, which may be the whole input


def _is_valid_asset(value: object) -> bool:
    """Check strings only: the `type` of the schema says whether the value must be a string."""
    return not isinstance(value, str) or _asset_error(value) is None


def _asset_error(value: str) -> str | None:
    if URL_PATTERN.match(value):
        return None  # the allow list, not the schema, decides whether it may be fetched
    try:
        parse_digest(value)
    except InvalidDigest as error:
        return str(error)
    return None


_formats = FormatChecker(formats=())
_formats.checks("asset")(_is_valid_asset)


_VALIDATOR_CACHE_LIMIT = 256  # one per endpoint; a host that announces its endpoints again brings new schemas
_validators: dict[int, tuple[dict[str, Any], Any]] = {}

STEPS_ON_LOOP = 2_000  # about 10 ms: the longest acceptable pause of the event loop
STEPS_LIMIT = 200_000  # about 1 s, in a thread
_BYTES_PER_STEP = 64  # of defaults: so an input has at most 12 MiB of them
_THREAD_LIMITER = RunVar[CapacityLimiter]("limiter of the threads that validate inputs")


class ValidatedInput(NamedTuple):
    """A valid input with defaults filled in, the digests that it names (each once), and its URLs."""

    input: dict[str, Any]
    digests: tuple[str, ...]
    pending_urls: tuple[PendingUrl, ...] = ()


async def validate_input(endpoint: Endpoint, job_input: dict[str, Any]) -> ValidatedInput:
    """Validate an input: on the event loop if that takes few steps, else in a thread, one input at a time.

    Raises ProblemError `input_invalid` with a FieldError for each fault, at most FIELD_ERROR_LIMIT of them.
    """
    with suppress(StepLimitExceeded):
        return check_within(STEPS_ON_LOOP, endpoint, job_input)
    try:
        return await to_thread.run_sync(check_within, STEPS_LIMIT, endpoint, job_input, limiter=_thread_limiter())
    except StepLimitExceeded as error:
        message = (
            f"takes more than {STEPS_LIMIT} steps to check, or is nested too deep to be checked: "
            f"send less, or ask the operator to simplify the schema of {endpoint.name}"
        )
        raise input_invalid_problem(FieldError("$.input", message)) from error


def _thread_limiter() -> CapacityLimiter:
    """Return the limiter of this event loop. More threads at once would make the loop wait for the GIL."""
    if (limiter := _THREAD_LIMITER.get(None)) is None:
        _THREAD_LIMITER.set(limiter := CapacityLimiter(1))
    return limiter


def check_within(steps: int, endpoint: Endpoint, job_input: dict[str, Any]) -> ValidatedInput:
    """Validate an input in at most `steps` steps. Raises ProblemError as `validate_input`, and StepLimitExceeded."""
    if is_too_deep(job_input):
        raise input_invalid_problem(
            FieldError("$.input", f"nested deeper than {NESTING_LIMIT} levels: move data into assets")
        )
    size = len(msgspec.json.encode(job_input))
    if size > INPUT_LIMIT_BYTES:
        raise input_invalid_problem(
            FieldError("$.input", f"{size} bytes of JSON, at most {INPUT_LIMIT_BYTES}: move data into assets")
        )
    with limit_steps(steps):
        filled = _fill_defaults(endpoint.input, job_input)
        errors = _find_errors(endpoint, filled)
        if errors:
            raise input_invalid_problem(*errors)
        files = asset_fields(endpoint.input, filled, spend_steps)
    urls = tuple(PendingUrl(field.path, field.value) for field in files if URL_PATTERN.match(field.value))
    digests = [parse_digest(field.value) for field in files if not URL_PATTERN.match(field.value)]
    return ValidatedInput(filled, tuple(dict.fromkeys(digests)), urls)


def _find_errors(endpoint: Endpoint, filled: dict[str, Any]) -> list[FieldError]:
    """Return the distinct errors, at most FIELD_ERROR_LIMIT. Raises StepLimitExceeded, also if nested too deep."""
    found: dict[FieldError, None] = {}
    try:
        for error in _get_validator(endpoint.input).iter_errors(filled):
            found |= dict.fromkeys(islice(_field_errors(error), FIELD_ERROR_LIMIT))
            if len(found) >= FIELD_ERROR_LIMIT:
                break
    except (Unresolvable, EndpointInvalid) as error:
        message = f"the schema of {endpoint.name} refers to a schema that it does not contain: {error}"
        raise ProblemError("internal", message) from error
    except RecursionError as error:
        raise StepLimitExceeded from error  # a thread has more free stack than the event loop
    return list(found)[:FIELD_ERROR_LIMIT]


def _get_validator(schema: dict[str, Any]) -> Any:
    """Return the cached validator of a schema: making one costs more than a check.

    The cache keeps the schema alive, so that its id is not reused for another schema.
    """
    cached = _validators.get(id(schema))
    if cached is None:
        if len(_validators) >= _VALIDATOR_CACHE_LIMIT:
            _validators.clear()
        # Without "$schema": jsonschema would pick its own validator for a "$ref" to a schema that names it.
        anonymous = {word: value for word, value in schema.items() if word not in {"$schema", "$id"}}
        # An empty registry: a "$ref" to another host is never fetched.
        validator = StepValidator(anonymous, registry=Registry(), format_checker=_formats)
        cached = _validators[id(schema)] = (schema, validator)
    return cached[1]


def input_invalid_problem(*errors: FieldError) -> ProblemError:
    """Return the problem `input_invalid`; its detail is the first error."""
    return ProblemError("input_invalid", f"{errors[0].path}: {errors[0].message}", errors=errors)


def asset_missing_problem(digests: tuple[str, ...]) -> ProblemError:
    """Return the problem `asset_missing` for these digests."""
    return ProblemError(
        "asset_missing",
        f"{len(digests)} asset(s) of the input have not been uploaded: PUT them to /v1/assets/<sha256>, then submit",
        missing=tuple(f"sha256:{digest}" for digest in digests),
    )


def _field_errors(error: ValidationError) -> Iterator[FieldError]:
    path = "$.input" + error.json_path.removeprefix("$")
    if error.validator == "required":
        for name in error.validator_value:
            if name not in error.instance:
                yield FieldError(f"{path}.{name}", "is required")
    elif unknown := _unknown_inputs(error):
        for name in unknown:
            message = describe_unknown_field(name, error.schema.get("properties", {}))
            yield FieldError(f"{path}.{name[:_NAME_CHARACTERS_LIMIT]}", message[:_MESSAGE_CHARACTERS_LIMIT])
    elif error.validator == "format":
        yield FieldError(path, _asset_error(str(error.instance)) or error.message[:_MESSAGE_CHARACTERS_LIMIT])
    else:
        yield FieldError(path, error.message[:_MESSAGE_CHARACTERS_LIMIT])


_NAMES_SHOWN_LIMIT = 20


def _list_names(name: str, known: Iterable[str]) -> tuple[str, str]:
    """Return the known names as a text, and the one that is most similar to `name`; both may be empty."""
    names = sorted(known)
    more = ", …" if len(names) > _NAMES_SHOWN_LIMIT else ""
    (similar,) = get_close_matches(name, names, 1) or ("",)
    return ", ".join(names[:_NAMES_SHOWN_LIMIT]) + more, similar


def describe_unknown_field(name: str, known: Iterable[str]) -> str:
    """Return the message about a field that is not in `known`, with those that are."""
    names, similar = _list_names(name, known)
    if not names:
        return "is not a field of this request"
    if not similar:
        return f"is not a field of this request: it takes {names}"
    return f"is not a field of this request: did you mean {similar}? It takes {names}"


def describe_unknown_parameter(name: str, known: Iterable[str]) -> str:
    """Return the message about a query parameter that is not in `known`, with those that are."""
    names, similar = _list_names(name, known)
    if not similar:
        return f"is not a query parameter of this path: it takes {names}"
    return f"is not a query parameter of this path: did you mean {similar}? It takes {names}"


def _unknown_inputs(error: ValidationError) -> list[str]:
    """Return the fields that the schema does not allow; empty if the error is another one."""
    schema = error.schema if isinstance(error.schema, Mapping) else {}
    if error.validator != "additionalProperties" or error.validator_value is not False or "patternProperties" in schema:
        return []
    known = schema.get("properties", {})
    return [name for name in error.instance if name not in known]


def _fill_defaults(schema: object, value: Any) -> Any:
    """Return `value` with the defaults of `properties`, also in nested objects and items, for missing fields."""
    if not isinstance(schema, dict):
        return value
    spend_steps(1)
    if isinstance(value, list):
        spend_steps(len(value))
        return [_fill_defaults(schema.get("items"), item) for item in value]
    if not isinstance(value, dict):
        return value
    properties: Mapping[str, Any] = schema.get("properties") or {}
    spend_steps(len(properties) + len(value))
    defaults = {
        name: inner["default"]
        for name, inner in properties.items()
        if name not in value and isinstance(inner, dict) and "default" in inner
    }
    if defaults:
        spend_steps(len(msgspec.json.encode(defaults)) // _BYTES_PER_STEP)  # a small input must not become a large one
    return {
        name: _fill_defaults(properties.get(name), inner) if isinstance(inner, _CONTAINERS) else inner
        for name, inner in (value | defaults).items()
    }


_INVALID_ENUM_PREFIX = "Invalid enum value "
_PATH_STEP = re.compile(r"\.([^.\[]+)|\[([^\]]*)\]")  # of `$.a.b[0]`


def describe_allowed_values(message: str, kind: Any, path: str = "$") -> str:
    """Return msgspec's `message` about the value at `path` of a `kind`, with the allowed values if it is an enum's.

    msgspec names only the value that is wrong.
    """
    if not message.startswith(_INVALID_ENUM_PREFIX):
        return message
    steps = [name or item for name, item in _PATH_STEP.findall(path)]
    choices = [value for inner in _types_at(inspect.type_info(kind), steps) for value in _allowed_values(inner)]
    return f"{message}: it is one of {', '.join(map(str, choices))}" if choices else message


def _types_at(kind: inspect.Type, steps: Sequence[str]) -> Iterator[inspect.Type]:
    """Yield every type that is allowed at the end of the path `steps`."""
    match kind:
        case inspect.Metadata(type=inner):
            yield from _types_at(inner, steps)
        case inspect.UnionType(types=members):
            for member in members:
                yield from _types_at(member, steps)
        case inspect.StructType(fields=fields) if steps:
            for field in fields:
                if field.encode_name == steps[0]:
                    yield from _types_at(field.type, steps[1:])
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item) if steps:
            yield from _types_at(item, steps[1:])
        case inspect.ListType(item_type=item):  # a repeated query parameter: Litestar does not say which value is wrong
            yield from _types_at(item, steps)
        case _ if not steps:
            yield kind


def _field_names(kind: inspect.Type, steps: Sequence[str]) -> list[str]:
    """Return the names of the fields of the object at the path `steps`."""
    structs = (found for found in _types_at(kind, steps) if isinstance(found, inspect.StructType))
    return [field.encode_name for found in structs for field in found.fields]


def _allowed_values(kind: inspect.Type) -> list[Any]:
    match kind:
        case inspect.EnumType(cls=enum):
            return [member.value for member in enum]
        case inspect.LiteralType(values=values):
            return list(values)
    return []


# The form of msgspec's errors: "<what> - at `$.a.b`"; an error about the whole body has no path.
_MSGSPEC_LOCATION = re.compile(r"(?P<what>.*?) - at (?P<key>`key` in )?`(?P<path>\$.*)`\Z", re.DOTALL)
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(?P<name>.*)`")
_MISSING_FIELD = re.compile(r"Object missing required field `(?P<name>.*)`")


def decode_as(body: dict[str, Any], kind: type[T]) -> T:
    """Decode `body` as a `kind`. Raises ProblemError `field_unknown` (400) or `input_invalid` (422) with the path."""
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise _validation_problem(str(error), kind) from error


def _validation_problem(text: str, kind: Any) -> ProblemError:
    what, key, path = _split_msgspec_error(text)
    unknown = _UNKNOWN_FIELD.match(what)
    if unknown:
        steps = [name or item for name, item in _PATH_STEP.findall(path)]
        message = describe_unknown_field(unknown["name"], _field_names(inspect.type_info(kind), steps))
        error = FieldError(f"{path}.{unknown['name']}", message)
        return ProblemError("field_unknown", f"{error.path}: {error.message}", errors=(error,))
    missing = _MISSING_FIELD.match(what)
    if missing:
        return input_invalid_problem(FieldError(f"{path}.{missing['name']}", "is required"))
    message = what.replace(f"matching regex {TOKEN_PATTERN!r}", "of 1 to 64 characters A-Z a-z 0-9 _ -")
    message = describe_allowed_values(message, kind, path)
    return input_invalid_problem(FieldError(path, f"a name in it: {message}" if key else message))


def _split_msgspec_error(text: str) -> tuple[str, bool, str]:
    """Return what is wrong, whether it is a key of the object at the path, and the path."""
    located = _MSGSPEC_LOCATION.match(text)
    if located is None:
        return text, False, "$"
    return located["what"], located["key"] is not None, located["path"]
