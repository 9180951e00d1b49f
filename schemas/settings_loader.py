"""Settings of a process: one frozen Struct, read once from a TOML file and `LAMPLIGHTER_*` variables."""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct, inspect

T = TypeVar("T")
SETTING_PREFIX = "LAMPLIGHTER_"


class SettingsInvalid(ValueError):
    """A setting cannot be read; the message names it."""


def _nest_variables(environ: Mapping[str, str]) -> dict[str, Any]:
    """`LAMPLIGHTER_A__B=1` as `{"a": {"b": "1"}}`."""
    tree: dict[str, Any] = {}
    for name, value in sorted(environ.items()):
        if not name.startswith(SETTING_PREFIX):
            continue
        *parents, last = name.removeprefix(SETTING_PREFIX).lower().split("__")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
            if not isinstance(branch, dict):
                raise SettingsInvalid(f"{name} is set beside a variable that is its prefix: set only one of the two")
        branch[last] = _parse_variable(name, value)
    return tree


def _parse_variable(name: str, text: str) -> Any:
    """A list or a table is written as JSON; anything else is text until the Struct says what it is."""
    try:
        return msgspec.json.decode(text) if text.startswith(("[", "{")) else text
    except msgspec.DecodeError as error:
        raise SettingsInvalid(f"{name} starts like JSON and is none: {error}") from error


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merge(merged[name], value) if both else value
    return merged


def _convert_path(kind: type, value: Any) -> Any:
    """What msgspec cannot read by itself: paths."""
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"a setting of type {kind.__name__} cannot be read from {value!r}")


def load_settings(kind: type[T], text: str, environ: Mapping[str, str]) -> T:
    """Settings of `kind` from TOML `text`, overridden by `environ`; raises SettingsInvalid.

    Variables are text, so numbers and booleans are read leniently; names the Struct does not have are ignored, because
    the file is shared by the processes of one host.
    """
    try:
        return msgspec.convert(
            _merge(tomllib.loads(text), _nest_variables(environ)), kind, strict=False, dec_hook=_convert_path
        )
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise SettingsInvalid(
            f"{error}: correct it in lamplighter.toml or in its {SETTING_PREFIX}* variable"
        ) from error


def select_variables(kind: type[Struct], environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of `environ` that are settings of `kind`: what its process is given, and no other one's."""
    heads = {
        name: name.removeprefix(SETTING_PREFIX).lower().partition("__")[0]
        for name in environ
        if name.startswith(SETTING_PREFIX)
    }
    return {name: environ[name] for name, head in heads.items() if head in kind.__struct_fields__}


def unknown_names(kinds: Iterable[type], text: str) -> list[str]:
    """The names in TOML `text`, with dots, that none of the Structs `kinds` has: probably misspelt."""
    return list(_walk_unknown_names(tomllib.loads(text), [inspect.type_info(kind) for kind in kinds], ""))


def _walk_unknown_names(table: dict[str, Any], kinds: Iterable[inspect.Type], path: str) -> Iterator[str]:
    known, open_ended = _known_fields(kinds)
    for name, value in table.items():
        if name not in known and open_ended is None:
            yield path + name
            continue
        below = [*known.get(name, ()), *(open_ended or ())]
        tables = [value] if isinstance(value, dict) else value if isinstance(value, list) else []
        for inner in tables:
            if isinstance(inner, dict):
                yield from _walk_unknown_names(inner, below, f"{path}{name}.")


def _known_fields(kinds: Iterable[inspect.Type]) -> tuple[dict[str, list[inspect.Type]], list[inspect.Type] | None]:
    """What each name may be; and what any name may be where one of the kinds takes any, else None."""
    known: dict[str, list[inspect.Type]] = {}
    open_ended: list[inspect.Type] | None = None
    for kind in kinds:
        match kind:
            case inspect.StructType(fields=fields, tag_field=tag):
                known |= {tag: []} if tag else {}
                for field in fields:
                    known.setdefault(field.encode_name, []).extend(_inner_types(field.type))
            case inspect.DictType(value_type=value):
                open_ended = [*(open_ended or ()), *_inner_types(value)]
            case inspect.AnyType():
                open_ended = [*(open_ended or ()), kind]
            case _:
                pass
    return known, open_ended


def _inner_types(kind: inspect.Type) -> Iterator[inspect.Type]:
    """The kinds that a value may have, of a list its items'."""
    match kind:
        case inspect.UnionType(types=types):
            for one in types:
                yield from _inner_types(one)
        case inspect.Metadata(type=inner):
            yield from _inner_types(inner)
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            yield from _inner_types(item)
        case _:
            yield kind
