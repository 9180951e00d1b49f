"""A job's `input` against its endpoint's JSON Schema (Draft 2020-12): defaults filled, each fault named by its path."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import msgspec
from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar
from jsonschema import FormatChecker
from jsonschema.exceptions import ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable

from edge.outbound.targets import IS_URL
from edge.services.steps import OutOfSteps, StepValidator, counting, spend
from schemas.asset import InvalidDigest, asset_fields, parse
from schemas.endpoint import Endpoint, EndpointInvalid
from schemas.errors import FieldError, Refused
from schemas.job import DEPTH, INPUT_BYTES, Fetch, too_deep

MAX_ERRORS = 20
_MESSAGE = 300  # characters; jsonschema quotes the value, which may be all of the input


def _is_asset(value: object) -> bool:
    """Strings only: whether it must be one is the schema's `type` to say."""
    return not isinstance(value, str) or _asset_fault(value) is None


def _asset_fault(value: str) -> str | None:
    if IS_URL.match(value):
        return None  # whether it may be fetched is not for the schema to say
    try:
        parse(value)
    except InvalidDigest as error:
        return str(error)
    return None


_formats = FormatChecker(formats=())
_formats.checks("asset")(_is_asset)


_KEPT = 256  # validators; there are as many as endpoints, and a new offer brings new ones
_validators: dict[int, tuple[dict[str, Any], Any]] = {}

STEPS_ON_LOOP = 2_000  # about 10 ms, as long as an event loop may be held
STEPS_LIMIT = 200_000  # about 1 s, in a thread
_BYTES_A_STEP = 64  # of defaults: at most 12 MiB an input
_THREADS = RunVar[CapacityLimiter]("threads that check inputs")


class Given(NamedTuple):
    """An input that fits its endpoint, defaults filled in: the digests it names, each once, and where it has URLs."""

    input: dict[str, Any]
    digests: tuple[str, ...]
    remote: tuple[Fetch, ...] = ()


async def check_input(endpoint: Endpoint, given: dict[str, Any]) -> Given:
    """The input, checked: on the event loop where that takes few steps, else in a thread, one at a time.

    Raises Refused `input_invalid` with a FieldError for each fault, at most MAX_ERRORS of them.
    """
    try:
        return check_within(STEPS_ON_LOOP, endpoint, given)
    except OutOfSteps:
        pass
    try:
        return await to_thread.run_sync(check_within, STEPS_LIMIT, endpoint, given, limiter=_threads())
    except OutOfSteps as error:
        why = (
            f"takes more than {STEPS_LIMIT} steps to check, or is nested too deep for that: "
            f"send less, or have the schema of {endpoint.name} simplified"
        )
        raise invalid(FieldError("$.input", why)) from error


def _threads() -> CapacityLimiter:
    """The limiter of this event loop: more threads at once would keep the loop waiting for the interpreter's lock."""
    known = _THREADS.get(None)
    if known is None:
        known = CapacityLimiter(1)
        _THREADS.set(known)
    return known


def check_within(steps: int, endpoint: Endpoint, given: dict[str, Any]) -> Given:
    """The input, checked in at most so many steps. Raises Refused as `check_input` does, and OutOfSteps."""
    if too_deep(given):
        raise invalid(FieldError("$.input", f"nested deeper than {DEPTH} levels: move data into assets"))
    size = len(msgspec.json.encode(given))
    if size > INPUT_BYTES:
        raise invalid(FieldError("$.input", f"{size} bytes of JSON, at most {INPUT_BYTES}: move data into assets"))
    with counting(steps):
        filled = _filled(endpoint.input, given)
        faults = _all_faults(endpoint, filled)
        if faults:
            raise invalid(*faults)
        files = asset_fields(endpoint.input, filled, spend)
    remote = tuple(Fetch(field.path, field.value) for field in files if IS_URL.match(field.value))
    digests = [parse(field.value) for field in files if not IS_URL.match(field.value)]
    return Given(filled, tuple(dict.fromkeys(digests)), remote)


def _all_faults(endpoint: Endpoint, filled: dict[str, Any]) -> list[FieldError]:
    """The faults, each once, at most MAX_ERRORS. Raises OutOfSteps, also where the input is nested too deep."""
    found: dict[FieldError, None] = {}
    try:
        for error in _validator(endpoint.input).iter_errors(filled):
            found |= dict.fromkeys(islice(_faults(error), MAX_ERRORS))
            if len(found) >= MAX_ERRORS:
                break
    except (Unresolvable, EndpointInvalid) as error:
        raise Refused("internal", f"the schema of {endpoint.name} refers to what is not in it: {error}") from error
    except RecursionError as error:
        raise OutOfSteps from error  # a thread has more of the stack to itself than an event loop
    return list(found)[:MAX_ERRORS]


def _validator(schema: dict[str, Any]) -> Any:
    """The validator of a schema, made once: making it costs more than a check. Held with it, so no id names another."""
    known = _validators.get(id(schema))
    if known is None:
        if len(_validators) >= _KEPT:
            _validators.clear()
        # Without "$schema", by which jsonschema would take one of its own validators for the same schema in a "$ref".
        own = {word: value for word, value in schema.items() if word not in {"$schema", "$id"}}
        # An empty registry: a "$ref" to another host is never fetched.
        made = StepValidator(own, registry=Registry(), format_checker=_formats)
        known = _validators[id(schema)] = (schema, made)
    return known[1]


def invalid(*errors: FieldError) -> Refused:
    """The refusal `input_invalid`, its detail the first error."""
    return Refused("input_invalid", f"{errors[0].path}: {errors[0].message}", errors=errors)


def assets_missing(digests: tuple[str, ...]) -> Refused:
    """The refusal `asset_missing`."""
    return Refused(
        "asset_missing",
        f"{len(digests)} asset(s) of the input have not been uploaded: PUT them to /v1/assets/<sha256>, then submit",
        missing=tuple(f"sha256:{digest}" for digest in digests),
    )


def _faults(error: ValidationError) -> Iterator[FieldError]:
    path = "$.input" + error.json_path.removeprefix("$")
    if error.validator == "required":
        for name in error.validator_value:
            if name not in error.instance:
                yield FieldError(f"{path}.{name}", "is required")
    elif error.validator == "format":
        yield FieldError(path, _asset_fault(str(error.instance)) or error.message[:_MESSAGE])
    else:
        yield FieldError(path, error.message[:_MESSAGE])


def _filled(schema: object, given: Any) -> Any:
    """`given` with the defaults of `properties` (and of objects and items in it) where it has none of its own."""
    if not isinstance(schema, Mapping):
        return given
    spend(1)
    if isinstance(given, list):
        spend(len(given))
        return [_filled(schema.get("items"), item) for item in given]
    if not isinstance(given, dict):
        return given
    properties: Mapping[str, Any] = schema.get("properties") or {}
    spend(len(properties) + len(given))
    defaults = {
        name: inner["default"]
        for name, inner in properties.items()
        if name not in given and isinstance(inner, Mapping) and "default" in inner
    }
    if defaults:
        spend(len(msgspec.json.encode(defaults)) // _BYTES_A_STEP)  # so that no small input becomes a large one
    return {name: _filled(properties.get(name), value) for name, value in (given | defaults).items()}
