"""The arguments `--FIELD VALUE` of `submit`, parsed by the endpoint's input schema."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from lamplighter.files import is_local_file
from schemas.asset import DIGEST_SCHEME


def parse_pairs(arguments: Sequence[str]) -> dict[str, str]:
    """Parse `--name value` and `--name=value` in order. Raises UsageError that names the argument it cannot parse."""
    given: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise click.UsageError(f"{word!r} has no field: give inputs as --FIELD VALUE")
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not rest:
                raise click.UsageError(f"--{name} has no value: give inputs as --FIELD VALUE")
            value = rest.pop(0)
        given[name.replace("-", "_")] = value
    return given


def _parse_bool(text: str) -> bool:
    words = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}
    return words[text.lower()]


def _parse_number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("JSON cannot represent this number")
    return value


def _check_utf8(text: str) -> str:
    text.encode()  # bytes that are not UTF-8 come from the shell as lone surrogates, which JSON cannot represent
    return text


PARSERS: Mapping[str, Any] = {
    "integer": int,
    "number": _parse_number,
    "boolean": _parse_bool,
    "array": msgspec.json.Decoder(list[Any]).decode,
    "object": msgspec.json.Decoder(dict[str, Any]).decode,
    "string": _check_utf8,
}


def parse_value(name: str, text: str, schema: Mapping[str, Any]) -> Any:
    """Return `text` as a value of `schema`. An asset is a `sha256:…`, a URL, or a local file, which becomes a Path."""
    if schema.get("format") == "asset":
        return text if text.startswith((DIGEST_SCHEME, "http://", "https://")) else _parse_path(name, text)
    kind = schema.get("type", "string")
    try:
        return PARSERS[kind if isinstance(kind, str) else "string"](text)
    except (ValueError, KeyError, msgspec.DecodeError) as error:
        raise click.UsageError(f"--{name} {text!r} is not a value of the type {kind}") from error


def _parse_path(name: str, text: str) -> Path:
    if not is_local_file(text):
        raise click.UsageError(f"--{name} {text!r}: the file does not exist")
    return Path(text)


def parse_inputs(endpoint: str, arguments: Sequence[str], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the input of a job from the command line."""
    properties = schema.get("properties", {})
    given = parse_pairs(arguments)
    unknown = sorted(given.keys() - properties.keys())
    if unknown and schema.get("additionalProperties") is False:
        takes = ", ".join(f"--{name}" for name in properties)
        raise click.UsageError(f"{endpoint} has no --{unknown[0]}: it takes {takes}")
    return {name: parse_value(name, text, properties.get(name, {})) for name, text in given.items()}
