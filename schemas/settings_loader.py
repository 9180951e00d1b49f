"""Settings of a process: one frozen Struct, read once from a TOML file and `LAMPLIGHTER_*` variables.

A setting that was renamed is still read under its old name, for one release: `renamed_from` on the Struct's field.
"""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import Meta, Struct, inspect

from schemas.settings_schema import (
    SETTING_PREFIX,
    SettingFault,
    convert_path,
    find_faults,
    unknown_fault,
    variable_name,
)

T = TypeVar("T")
DEFAULT_SOURCE = "lamplighter.toml"
_RENAMED_FROM = "renamed_from"


class SettingsInvalid(ValueError):
    """A setting cannot be read; the message names it."""


class RenamedSetting(NamedTuple):
    """A setting that is given under the name of an earlier release. Names have dots, as in `hosts.gpu-1.rank`."""

    old_name: str
    new_name: str


def renamed_from(old_name: str) -> Meta:
    """Annotate a field that had another name in the last release: `field: Annotated[int, renamed_from("old")]`."""
    return Meta(extra={_RENAMED_FROM: old_name})


def _nest_variables(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return `LAMPLIGHTER_A__B=1` as `{"a": {"b": "1"}}`."""
    tree: dict[str, Any] = {}
    for name, value in sorted(environ.items()):
        if not name.startswith(SETTING_PREFIX):
            continue
        *parents, last = name.removeprefix(SETTING_PREFIX).lower().split("__")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
            if not isinstance(branch, dict):
                raise SettingsInvalid(
                    f"{name} is set together with a variable that is its prefix: set only one of the two"
                )
        branch[last] = _parse_variable(name, value)
    return tree


def _parse_variable(name: str, text: str) -> Any:
    """Parse a list or a table as JSON. Any other value stays text; the Struct says what it is."""
    try:
        return msgspec.json.decode(text) if text.startswith(("[", "{")) else text
    except msgspec.DecodeError as error:
        raise SettingsInvalid(f"{name} starts like JSON but cannot be read as JSON: {error}") from error


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merge(merged[name], value) if both else value
    return merged


@cache
def _describe(kind: type) -> inspect.Type:
    """Return what msgspec knows of a Struct of settings. It takes 10 ms for those of the edge."""
    return inspect.type_info(kind)


def load_settings(kind: type[T], text: str, environ: Mapping[str, str], source: str = DEFAULT_SOURCE) -> T:
    """Return the settings of `kind` from TOML `text`, overridden by `environ`. Raises SettingsInvalid.

    Variables are text, so numbers and booleans are read leniently. Names that the Struct does not have are ignored,
    because the processes of a host share the file. Names of the last release are read as the new ones. `source`: the
    name of the file, for messages.
    """
    given = merge_given(kind, text, environ, source)
    try:
        return msgspec.convert(given, kind, strict=False, dec_hook=convert_path)
    except msgspec.ValidationError as error:
        lines = [describe_fault(fault, environ, source) for fault in find_faults(kind, given)] or [str(error)]
        more = f" ({len(lines) - 1} more: `lamplighter config check`)" if len(lines) > 1 else ""
        raise SettingsInvalid(f"{lines[0]}{more}") from error


def merge_given(kind: type, text: str, environ: Mapping[str, str], source: str = DEFAULT_SOURCE) -> dict[str, Any]:
    """Return all that TOML `text` and `environ` set, under the new names. Raises SettingsInvalid."""
    tables = (parse_toml(text, source), _nest_variables(environ))
    return _merge(*(_rename(table, [_describe(kind)]) for table in tables))


def parse_toml(text: str, source: str = DEFAULT_SOURCE) -> dict[str, Any]:
    """Return the tables of a settings file. Raises SettingsInvalid."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsInvalid(f"{source} is not valid TOML: {error}: correct it there") from error


def find_variable(setting: str, environ: Mapping[str, str]) -> str | None:
    """Return the variable that sets `setting` or a table around it, None if no variable does."""
    parts = setting.split(".")
    names = [variable_name(".".join(parts[:count]).partition("[")[0]) for count in range(len(parts), 0, -1)]
    given = {name.upper(): name for name in environ}
    return next((given[name] for name in names if name in given), None)


def describe_fault(fault: SettingFault, environ: Mapping[str, str], source: str = DEFAULT_SOURCE) -> str:
    """Return one line: the setting, what is wrong with it, and where to correct it."""
    where = find_variable(fault.name, environ) or source
    return f"{fault.name} {fault.problem}: correct it in {where}".strip()


def select_variables(kind: type[Struct], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of `environ` that are settings of `kind`: its process gets these, and no other one's."""
    fields = _known_fields([_describe(kind)])
    heads = {
        name: name.removeprefix(SETTING_PREFIX).lower().partition("__")[0]
        for name in environ
        if name.startswith(SETTING_PREFIX)
    }
    return {name: environ[name] for name, head in heads.items() if head in fields.by_name or head in fields.new_names}


def unknown_settings(kinds: Iterable[type], text: str, source: str = DEFAULT_SOURCE) -> list[SettingFault]:
    """Return the names in TOML `text`, with dots, that none of the Structs `kinds` has: probably typos."""
    tables = parse_toml(text, source)
    return list(_walk_unknown_names(tables, [_describe(kind) for kind in kinds], "")) if tables else []


def renamed_settings(
    kinds: Iterable[type], text: str, environ: Mapping[str, str], source: str = DEFAULT_SOURCE
) -> list[RenamedSetting]:
    """Return the settings in TOML `text` and `environ` that are given under their name of the last release."""
    found: list[RenamedSetting] = []
    for table in filter(None, (parse_toml(text, source), _nest_variables(environ))):
        _rename(table, [_describe(kind) for kind in kinds], found)
    return found


class _KnownFields(NamedTuple):
    """The fields of all kinds that a table may be.

    `open_ended`: the types of any other name's value, None where other names are not allowed. `new_names` by old name.
    """

    by_name: dict[str, list[inspect.Type]]
    open_ended: list[inspect.Type] | None
    new_names: dict[str, str]

    def types_of(self, name: str) -> list[inspect.Type]:
        """Return what the value under `name` may be."""
        return [*self.by_name.get(name, ()), *(self.open_ended or ())]


def _rename(
    table: dict[str, Any],
    kinds: Iterable[inspect.Type],
    found: list[RenamedSetting] | None = None,
    path: tuple[str, str] = ("", ""),
) -> dict[str, Any]:
    """Return `table` with the new names in place of old ones, which are added to `found`.

    `path`: the names of the tables around it, as given and as renamed. Raises SettingsInvalid where both names of a
    setting are given: one of the two would be ignored.
    """
    fields = _known_fields(kinds)
    renamed: dict[str, Any] = {}
    for name, value in table.items():
        new = name if name in fields.by_name else fields.new_names.get(name, name)
        given, place = f"{path[0]}{name}", f"{path[1]}{new}"
        if new != name:
            if new in table:
                raise SettingsInvalid(f"{given} is the old name of {place}, and both are set: remove {given}")
            if found is not None:
                found.append(RenamedSetting(given, place))
        below, inside = fields.types_of(new), (f"{given}.", f"{place}.")
        renamed[new] = _rename_inside(value, below, found, inside)
    return renamed


def _rename_inside(
    value: Any, kinds: list[inspect.Type], found: list[RenamedSetting] | None, path: tuple[str, str]
) -> Any:
    match value:
        case dict():
            return _rename(value, kinds, found, path)
        case list():
            return [_rename_inside(one, kinds, found, path) for one in value]
        case _:
            return value


def _walk_unknown_names(table: dict[str, Any], kinds: Iterable[inspect.Type], path: str) -> Iterator[SettingFault]:
    fields = _known_fields(kinds)
    for name, value in table.items():
        new = fields.new_names.get(name, name)
        if new not in fields.by_name and fields.open_ended is None:
            yield unknown_fault(path + name, name, fields.by_name)
            continue
        tables = [value] if isinstance(value, dict) else value if isinstance(value, list) else []
        for inner in tables:
            if isinstance(inner, dict):
                yield from _walk_unknown_names(inner, fields.types_of(new), f"{path}{name}.")


def _known_fields(kinds: Iterable[inspect.Type]) -> _KnownFields:
    by_name: dict[str, list[inspect.Type]] = {}
    open_ended: list[inspect.Type] | None = None
    new_names: dict[str, str] = {}
    for kind in kinds:
        match kind:
            case inspect.StructType(fields=fields, tag_field=tag):
                by_name |= {tag: []} if tag else {}
                for field in fields:
                    by_name.setdefault(field.encode_name, []).extend(_inner_types(field.type))
                    if (old_name := _old_name(field.type)) is not None:
                        new_names[old_name] = field.encode_name
            case inspect.DictType(value_type=value):
                open_ended = [*(open_ended or ()), *_inner_types(value)]
            case inspect.AnyType():
                open_ended = [*(open_ended or ()), kind]
            case _:
                pass
    return _KnownFields(by_name, open_ended, new_names)


def _old_name(kind: inspect.Type) -> str | None:
    """Return the name that `renamed_from` gives, None for a field without it."""
    return (kind.extra or {}).get(_RENAMED_FROM) if isinstance(kind, inspect.Metadata) else None


def _inner_types(kind: inspect.Type) -> Iterator[inspect.Type]:
    """Return the types that a value may have; those of the items where it is a list."""
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
