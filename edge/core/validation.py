"""Validation of requests: bodies as Structs, and a job's `input` against the JSON Schema of its endpoint.

Every fault is reported with its path. The schema (Draft 2020-12) also fills defaults. A check runs within a step
budget: short ones on the event loop, long ones in a thread.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import msgspec
from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar
from jsonschema import FormatChecker
from jsonschema.exceptions import ValidationError
from msgspec import inspect
from referencing import Registry
from referencing.exceptions import Unresolvable

from edge.core.validation_steps import StepLimitExceeded, StepValidator, limit_steps, spend_steps
from edge.outbound.url_policy import URL_PATTERN
from schemas.asset import InvalidDigest, asset_fields, parse_digest
from schemas.endpoint import Endpoint, EndpointInvalid
from schemas.ids import TOKEN_PATTERN
from schemas.job import INPUT_LIMIT_BYTES, NESTING_LIMIT, PendingUrl, is_too_deep
from schemas.problems import FieldError, ProblemError

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
    try:
        return check_within(STEPS_ON_LOOP, endpoint, job_input)
    except StepLimitExceeded:
        pass
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
    limiter = _THREAD_LIMITER.get(None)
    if limiter is None:
        limiter = CapacityLimiter(1)
        _THREAD_LIMITER.set(limiter)
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
    if not isinstance(schema, Mapping):
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
        if name not in value and isinstance(inner, Mapping) and "default" in inner
    }
    if defaults:
        spend_steps(len(msgspec.json.encode(defaults)) // _BYTES_PER_STEP)  # a small input must not become a large one
    return {name: _fill_defaults(properties.get(name), inner) for name, inner in (value | defaults).items()}


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


T = TypeVar("T")

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
