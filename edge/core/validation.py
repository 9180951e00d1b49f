"""A job's `input` against its endpoint's JSON Schema (Draft 2020-12): defaults filled, each fault named by its path."""

import re
from collections.abc import Iterator, Mapping, Sequence
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
_MESSAGE_CHARACTERS_LIMIT = 300  # characters; jsonschema quotes the value, which may be all of the input


def _is_valid_asset(value: object) -> bool:
    """Strings only: whether it must be one is the schema's `type` to say."""
    return not isinstance(value, str) or _asset_error(value) is None


def _asset_error(value: str) -> str | None:
    if URL_PATTERN.match(value):
        return None  # whether it may be fetched is not for the schema to say
    try:
        parse_digest(value)
    except InvalidDigest as error:
        return str(error)
    return None


_formats = FormatChecker(formats=())
_formats.checks("asset")(_is_valid_asset)


_VALIDATOR_CACHE_LIMIT = 256  # validators; there are as many as endpoints, and a new offer brings new ones
_validators: dict[int, tuple[dict[str, Any], Any]] = {}

STEPS_ON_LOOP = 2_000  # about 10 ms, as long as an event loop may be held
STEPS_LIMIT = 200_000  # about 1 s, in a thread
_BYTES_A_STEP = 64  # of defaults: at most 12 MiB an input
_THREADS = RunVar[CapacityLimiter]("threads that check inputs")


class ValidatedInput(NamedTuple):
    """An input that fits its endpoint, defaults filled in: the digests it names, each once, and where it has URLs."""

    input: dict[str, Any]
    digests: tuple[str, ...]
    pending_urls: tuple[PendingUrl, ...] = ()


async def validate_input(endpoint: Endpoint, given: dict[str, Any]) -> ValidatedInput:
    """The input, checked: on the event loop where that takes few steps, else in a thread, one at a time.

    Raises Refused `input_invalid` with a FieldError for each fault, at most MAX_ERRORS of them.
    """
    try:
        return check_within(STEPS_ON_LOOP, endpoint, given)
    except StepLimitExceeded:
        pass
    try:
        return await to_thread.run_sync(check_within, STEPS_LIMIT, endpoint, given, limiter=_threads())
    except StepLimitExceeded as error:
        why = (
            f"takes more than {STEPS_LIMIT} steps to check, or is nested too deep for that: "
            f"send less, or have the schema of {endpoint.name} simplified"
        )
        raise input_invalid_problem(FieldError("$.input", why)) from error


def _threads() -> CapacityLimiter:
    """The limiter of this event loop: more threads at once would keep the loop waiting for the interpreter's lock."""
    known = _THREADS.get(None)
    if known is None:
        known = CapacityLimiter(1)
        _THREADS.set(known)
    return known


def check_within(steps: int, endpoint: Endpoint, given: dict[str, Any]) -> ValidatedInput:
    """The input, checked in at most so many steps. Raises Refused as `check_input` does, and OutOfSteps."""
    if is_too_deep(given):
        raise input_invalid_problem(
            FieldError("$.input", f"nested deeper than {NESTING_LIMIT} levels: move data into assets")
        )
    size = len(msgspec.json.encode(given))
    if size > INPUT_LIMIT_BYTES:
        raise input_invalid_problem(
            FieldError("$.input", f"{size} bytes of JSON, at most {INPUT_LIMIT_BYTES}: move data into assets")
        )
    with limit_steps(steps):
        filled = _fill_defaults(endpoint.input, given)
        faults = _all_faults(endpoint, filled)
        if faults:
            raise input_invalid_problem(*faults)
        files = asset_fields(endpoint.input, filled, spend_steps)
    remote = tuple(PendingUrl(field.path, field.value) for field in files if URL_PATTERN.match(field.value))
    digests = [parse_digest(field.value) for field in files if not URL_PATTERN.match(field.value)]
    return ValidatedInput(filled, tuple(dict.fromkeys(digests)), remote)


def _all_faults(endpoint: Endpoint, filled: dict[str, Any]) -> list[FieldError]:
    """The faults, each once, at most MAX_ERRORS. Raises OutOfSteps, also where the input is nested too deep."""
    found: dict[FieldError, None] = {}
    try:
        for error in _get_validator(endpoint.input).iter_errors(filled):
            found |= dict.fromkeys(islice(_field_errors(error), FIELD_ERROR_LIMIT))
            if len(found) >= FIELD_ERROR_LIMIT:
                break
    except (Unresolvable, EndpointInvalid) as error:
        raise ProblemError("internal", f"the schema of {endpoint.name} refers to what is not in it: {error}") from error
    except RecursionError as error:
        raise StepLimitExceeded from error  # a thread has more of the stack to itself than an event loop
    return list(found)[:FIELD_ERROR_LIMIT]


def _get_validator(schema: dict[str, Any]) -> Any:
    """The validator of a schema, made once: making it costs more than a check. Held with it, so no id names another."""
    known = _validators.get(id(schema))
    if known is None:
        if len(_validators) >= _VALIDATOR_CACHE_LIMIT:
            _validators.clear()
        # Without "$schema", by which jsonschema would take one of its own validators for the same schema in a "$ref".
        own = {word: value for word, value in schema.items() if word not in {"$schema", "$id"}}
        # An empty registry: a "$ref" to another host is never fetched.
        made = StepValidator(own, registry=Registry(), format_checker=_formats)
        known = _validators[id(schema)] = (schema, made)
    return known[1]


def input_invalid_problem(*errors: FieldError) -> ProblemError:
    """The refusal `input_invalid`, its detail the first error."""
    return ProblemError("input_invalid", f"{errors[0].path}: {errors[0].message}", errors=errors)


def asset_missing_problem(digests: tuple[str, ...]) -> ProblemError:
    """The refusal `asset_missing`."""
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
    elif error.validator == "format":
        yield FieldError(path, _asset_error(str(error.instance)) or error.message[:_MESSAGE_CHARACTERS_LIMIT])
    else:
        yield FieldError(path, error.message[:_MESSAGE_CHARACTERS_LIMIT])


def _fill_defaults(schema: object, given: Any) -> Any:
    """`given` with the defaults of `properties` (and of objects and items in it) where it has none of its own."""
    if not isinstance(schema, Mapping):
        return given
    spend_steps(1)
    if isinstance(given, list):
        spend_steps(len(given))
        return [_fill_defaults(schema.get("items"), item) for item in given]
    if not isinstance(given, dict):
        return given
    properties: Mapping[str, Any] = schema.get("properties") or {}
    spend_steps(len(properties) + len(given))
    defaults = {
        name: inner["default"]
        for name, inner in properties.items()
        if name not in given and isinstance(inner, Mapping) and "default" in inner
    }
    if defaults:
        spend_steps(len(msgspec.json.encode(defaults)) // _BYTES_A_STEP)  # so that no small input becomes a large one
    return {name: _fill_defaults(properties.get(name), value) for name, value in (given | defaults).items()}


# MERGED edge/services/choices.py: What an enumeration allows, told to who sent something else: msgspec says only what
# was wrong.


_INVALID_ENUM_PREFIX = "Invalid enum value "
_PATH_STEP = re.compile(r"\.([^.\[]+)|\[([^\]]*)\]")  # of `$.a.b[0]`


def describe_allowed_values(message: str, kind: Any, path: str = "$") -> str:
    """msgspec's `message` of what stands at `path` of a `kind`, with what may stand there where it names no choice."""
    if not message.startswith(_INVALID_ENUM_PREFIX):
        return message
    steps = [name or item for name, item in _PATH_STEP.findall(path)]
    choices = [value for one in _types_at(inspect.type_info(kind), steps) for value in _allowed_values(one)]
    return f"{message}: it is one of {', '.join(map(str, choices))}" if choices else message


def _types_at(kind: inspect.Type, steps: Sequence[str]) -> Iterator[inspect.Type]:
    """Everything that may stand behind these steps."""
    match kind:
        case inspect.Metadata(type=inner):
            yield from _types_at(inner, steps)
        case inspect.UnionType(types=several):
            for one in several:
                yield from _types_at(one, steps)
        case inspect.StructType(fields=fields) if steps:
            for field in fields:
                if field.encode_name == steps[0]:
                    yield from _types_at(field.type, steps[1:])
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item) if steps:
            yield from _types_at(item, steps[1:])
        case _ if not steps:
            yield kind


def _allowed_values(kind: inspect.Type) -> list[Any]:
    match kind:
        case inspect.EnumType(cls=enum):
            return [member.value for member in enum]
        case inspect.LiteralType(values=values):
            return list(values)
    return []


T = TypeVar("T")

# How msgspec words its errors: "<what> - at `$.a.b`", the path left out at the top.
_MSGSPEC_ERROR = re.compile(r"^(?P<what>.*?)(?: - at (?P<key>`key` in )?`(?P<path>\$.*)`)?$", re.DOTALL)
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(?P<name>.*)`")
_MISSING_FIELD = re.compile(r"Object missing required field `(?P<name>.*)`")


def decode_as(body: dict[str, Any], kind: type[T]) -> T:
    """`body` as a `kind`. Raises Refused `field_unknown` (400) or `input_invalid` (422), naming the path."""
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise _validation_problem(str(error), kind) from error


def _validation_problem(text: str, kind: Any) -> ProblemError:
    parts = _MSGSPEC_ERROR.match(text)
    if parts is None:
        raise ValueError(f"msgspec words its errors in a new way: {text}")
    what, path = parts["what"], parts["path"] or "$"
    unknown = _UNKNOWN_FIELD.match(what)
    if unknown:
        error = FieldError(f"{path}.{unknown['name']}", "is not a field of this request")
        return ProblemError("field_unknown", f"{error.path}: {error.message}", errors=(error,))
    missing = _MISSING_FIELD.match(what)
    if missing:
        return input_invalid_problem(FieldError(f"{path}.{missing['name']}", "is required"))
    said = what.replace(f"matching regex {TOKEN_PATTERN!r}", "of 1 to 64 characters A-Z a-z 0-9 _ -")
    said = describe_allowed_values(said, kind, path)
    return input_invalid_problem(FieldError(path, f"a name in it: {said}" if parts["key"] else said))
