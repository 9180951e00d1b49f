"""Facts about the fields of the settings Structs: allowed values in words, units, secrets, names of variables.

A field's meaning is the string below it (an attribute docstring); `deploy/settings_doc.py` reads those from the source.
Everything else is in the field's type: limits in `Meta`, the format of a text in `Meta(description=…)`, a unit in
`unit_of`, a secret in `SECRET`.
"""

import types
from collections.abc import Iterable, Iterator
from inspect import get_annotations
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from msgspec import NODEFAULT, Meta, Struct, inspect, structs

SETTING_PREFIX = "LAMPLIGHTER_"
ANY_NAME = "NAME"  # stands for the name of a table such as [hosts.gpu-1]
_UNIT, _SECRET = "unit", "secret"
UNIT_BY_SUFFIX = {
    "_s": "seconds",
    "_days": "days",
    "_bytes": "bytes",
    "_mb": "MiB",
    "_gb": "GiB",
    "_c": "°C",
    "_per_minute": "per minute",
}
SECRET_MASK = "***"  # noqa: S105 - shown in place of a secret
SECRET = Meta(extra={_SECRET: True})  # annotates a field whose value is never shown


def unit_of(unit: str) -> Meta:
    """Annotate a field whose name does not end with its unit: `wake_delay: Annotated[float, unit_of("seconds")]`."""
    return Meta(extra={_UNIT: unit})


class Setting(NamedTuple):
    """One setting. `name` has dots, `default`: None without one, or where it is unset.

    `default_without_table`: the value where the file does not have the whole table. `owner`: the Struct that declares
    the field `attribute`.
    """

    name: str
    owner: type[Struct]
    attribute: str
    allowed: str
    default: Any
    default_without_table: Any
    is_required: bool
    unit: str
    is_secret: bool


def variable_name(setting: str) -> str:
    """Return the environment variable of a setting: `broker.url` is LAMPLIGHTER_BROKER__URL."""
    return SETTING_PREFIX + setting.replace(".", "__").upper()


def list_settings(kind: type[Struct], prefix: str = "", table: Struct | None = None) -> Iterator[Setting]:
    """Return the settings of `kind` in their order; those in tables of any name as `hosts.NAME.driver`.

    `table`: the value of the whole table where the file does not have it.
    """
    if (tag_field := kind.__struct_config__.tag_field) is not None:
        tag = str(kind.__struct_config__.tag)
        yield Setting(
            f"{prefix}{tag_field}", kind, tag_field, tag, None, None, is_required=True, unit="", is_secret=False
        )
    for field in structs.fields(kind):
        name, default = f"{prefix}{field.encode_name}", _default_of(field)
        inside = list(_tables_in(field.type, name))
        for path, one in inside:
            yield from list_settings(one, f"{path}.", default if isinstance(default, one) else None)
        if not inside:
            yield _describe_field(kind, field, name, default if table is None else getattr(table, field.name))


def _default_of(field: structs.FieldInfo) -> Any:
    default = field.default if field.default_factory is NODEFAULT else field.default_factory()
    return None if default is NODEFAULT else default


def _describe_field(kind: type[Struct], field: structs.FieldInfo, name: str, without_table: Any) -> Setting:
    extra = metadata_extra(field.type)
    return Setting(
        name=name,
        owner=next(base for base in kind.__mro__ if field.name in get_annotations(base)),
        attribute=field.name,
        allowed=describe_type(field.type),
        default=_default_of(field),
        default_without_table=without_table,
        is_required=field.required,
        unit=extra.get(_UNIT) or _unit_by_name(field.name),
        is_secret=bool(extra.get(_SECRET)),
    )


def _unit_by_name(name: str) -> str:
    return next((unit for suffix, unit in UNIT_BY_SUFFIX.items() if name.endswith(suffix)), "")


def metadata_extra(annotation: Any) -> dict[str, Any]:
    """Return what `unit_of` and SECRET say of a field's type, also inside `X | None` and inside a list."""
    found: dict[str, Any] = {}
    for item in getattr(annotation, "__metadata__", ()):
        found |= (item.extra or {}) if isinstance(item, Meta) else {}
    if get_origin(annotation) in {Annotated, Union, types.UnionType}:
        for inner in get_args(annotation):
            found = metadata_extra(inner) | found
    return found


def _tables_in(annotation: Any, path: str) -> Iterator[tuple[str, type[Struct]]]:
    """Return the Structs that a field may be, with the path to each."""
    kind = strip_annotations(annotation)
    if is_struct(kind):
        yield path, kind
    elif get_origin(kind) in {Union, types.UnionType}:
        for inner in get_args(kind):
            yield from _tables_in(inner, path)
    elif get_origin(kind) is dict:
        yield from _tables_in(get_args(kind)[1], f"{path}.{ANY_NAME}")


def is_struct(kind: Any) -> bool:
    """Return whether `kind` is a Struct class."""
    return isinstance(kind, type) and issubclass(kind, Struct)


def strip_annotations(annotation: Any) -> Any:
    """Return the type inside `Annotated[…]`."""
    return strip_annotations(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation


def union_members(annotation: Any) -> tuple[Any, ...]:
    """Return the types of a union except None, or the one type that `annotation` is."""
    kind = strip_annotations(annotation)
    members = get_args(kind) if get_origin(kind) in {Union, types.UnionType} else (kind,)
    return tuple(member for member in members if member is not types.NoneType)


def convert_path(kind: type, value: Any) -> Any:
    """Convert the one type that msgspec cannot read by itself: paths."""
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"a setting of type {kind.__name__} cannot be read from {value!r}")


def describe_type(annotation: Any) -> str:
    """Return the values that a type allows, in words: `a number above 0`, `docker, process or auto`."""
    return _describe(inspect.type_info(annotation))


def _describe(kind: inspect.Type) -> str:  # noqa: PLR0911, C901 - one line for each kind of type
    match kind:
        case inspect.Metadata(type=inner, extra_json_schema=schema):
            return str((schema or {}).get("description") or _describe(inner))
        case inspect.UnionType(types=members):
            return join_alternatives(dict.fromkeys(word for member in members for word in _alternatives(member)))
        case inspect.IntType():
            return _describe_number("a whole number", kind)
        case inspect.FloatType():
            return _describe_number("a number", kind)
        case inspect.BoolType():
            return "true or false"
        case inspect.LiteralType() | inspect.EnumType():
            return join_alternatives(_alternatives(kind))
        case inspect.ListType() | inspect.VarTupleType() | inspect.FrozenSetType():
            return f"a list{_describe_length(kind.min_length, kind.max_length)}, each item {_describe(kind.item_type)}"
        case inspect.DictType(value_type=inspect.AnyType()):
            return "a table"
        case inspect.DictType(value_type=value):
            return f"a table, each value {_describe(value)}"
        case inspect.StructType():
            return "a table"
        case inspect.CustomType(cls=cls) if cls is Path:
            return "a path"
        case _:
            return "text"


def _alternatives(kind: inspect.Type) -> list[str]:
    match kind:
        case inspect.NoneType():
            return []
        case inspect.LiteralType(values=values):
            return [str(value) for value in values]
        case inspect.EnumType(cls=members):
            return [str(member.value) for member in members]
        case _:
            return [_describe(kind)]


def _describe_length(least: int | None, most: int | None) -> str:
    if least is not None and most is not None:
        return f" of {least} to {most} items"
    if most is not None:
        return f" of at most {most} items"
    return f" of at least {least} items" if least is not None else ""


def _describe_number(noun: str, kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.ge is not None and kind.le is not None:
        return f"{noun} from {kind.ge:.15g} to {kind.le:.15g}"
    limits = [(kind.ge, "of at least"), (kind.gt, "above"), (kind.le, "of at most"), (kind.lt, "below")]
    words = [f"{word} {limit:.15g}" for limit, word in limits if limit is not None]
    return " ".join([noun, " and ".join(words)]).strip()


def join_alternatives(words: Iterable[str]) -> str:
    """Return the words as in `a, b or c`."""
    *first, last = list(words) or ["nothing"]
    return f"{', '.join(first)} or {last}" if first else last
