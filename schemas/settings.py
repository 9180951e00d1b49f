"""Settings of a process: one frozen Struct, read once from a TOML file and `LAMPLIGHTER_*` variables."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")
PREFIX = "LAMPLIGHTER_"


class SettingsInvalid(ValueError):
    """A setting cannot be read; the message names it."""


def _nested(environ: Mapping[str, str]) -> dict[str, Any]:
    """`LAMPLIGHTER_A__B=1` as `{"a": {"b": "1"}}`."""
    tree: dict[str, Any] = {}
    for name, value in sorted(environ.items()):
        if not name.startswith(PREFIX):
            continue
        *parents, last = name.removeprefix(PREFIX).lower().split("__")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
            if not isinstance(branch, dict):
                raise SettingsInvalid(f"{name} is set beside a variable that is its prefix: set only one of the two")
        branch[last] = _value(name, value)
    return tree


def _value(name: str, text: str) -> Any:
    """A list or a table is written as JSON; anything else is text until the Struct says what it is."""
    try:
        return msgspec.json.decode(text) if text.startswith(("[", "{")) else text
    except msgspec.DecodeError as error:
        raise SettingsInvalid(f"{name} starts like JSON and is none: {error}") from error


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if both else value
    return merged


def _read(kind: type, value: Any) -> Any:
    """What msgspec cannot read by itself: paths."""
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"a setting of type {kind.__name__} cannot be read from {value!r}")


def load(kind: type[T], text: str, environ: Mapping[str, str]) -> T:
    """Settings of `kind` from TOML `text`, overridden by `environ`; raises SettingsInvalid.

    Variables are text, so numbers and booleans are read leniently; names the Struct does not have are ignored, because
    the file is shared by the processes of one host.
    """
    try:
        return msgspec.convert(_merged(tomllib.loads(text), _nested(environ)), kind, strict=False, dec_hook=_read)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise SettingsInvalid(f"{error}: correct it in lamplighter.toml or in its {PREFIX}* variable") from error
