"""A job's `input` against its endpoint's JSON Schema (Draft 2020-12): defaults filled, each fault named by its path."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable

from edge.outbound.targets import IS_URL
from schemas.asset import InvalidDigest, asset_fields, parse
from schemas.endpoint import Endpoint
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
_validators: dict[int, tuple[dict[str, Any], Draft202012Validator]] = {}


class Given(NamedTuple):
    """An input that fits its endpoint, defaults filled in: the digests it names, each once, and where it has URLs."""

    input: dict[str, Any]
    digests: tuple[str, ...]
    remote: tuple[Fetch, ...] = ()


def check_input(endpoint: Endpoint, given: dict[str, Any]) -> Given:
    """The input, checked.

    Raises Refused `input_invalid` with a FieldError for each fault, at most MAX_ERRORS of them.
    """
    if too_deep(given):
        raise invalid(FieldError("$.input", f"nested deeper than {DEPTH} levels: move data into assets"))
    size = len(msgspec.json.encode(given))
    if size > INPUT_BYTES:
        raise invalid(FieldError("$.input", f"{size} bytes of JSON, at most {INPUT_BYTES}: move data into assets"))
    filled = _filled(endpoint.input, given)
    try:
        errors = _validator(endpoint.input).iter_errors(filled)
        faults = list(dict.fromkeys(fault for error in errors for fault in _faults(error)))
    except Unresolvable as error:
        raise Refused("internal", f"the schema of {endpoint.name} refers to what is not in it: {error}") from error
    if faults:
        raise invalid(*faults[:MAX_ERRORS])
    files = asset_fields(endpoint.input, filled)
    remote = tuple(Fetch(field.path, field.value) for field in files if IS_URL.match(field.value))
    digests = [parse(field.value) for field in files if not IS_URL.match(field.value)]
    return Given(filled, tuple(dict.fromkeys(digests)), remote)


def _validator(schema: dict[str, Any]) -> Draft202012Validator:
    """The validator of a schema, made once: making it costs more than a check. Held with it, so no id names another."""
    known = _validators.get(id(schema))
    if known is None:
        if len(_validators) >= _KEPT:
            _validators.clear()
        # An empty registry: a "$ref" to another host is never fetched.
        made = Draft202012Validator(schema, registry=Registry(), format_checker=_formats)
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
    if isinstance(given, list):
        return [_filled(schema.get("items"), item) for item in given]
    if not isinstance(given, dict):
        return given
    properties: Mapping[str, Any] = schema.get("properties") or {}
    defaults = {
        name: inner["default"]
        for name, inner in properties.items()
        if name not in given and isinstance(inner, Mapping) and "default" in inner
    }
    return {name: _filled(properties.get(name), value) for name, value in (given | defaults).items()}
