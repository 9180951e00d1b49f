"""Settings as Structs: facts about their fields, the faults of given values, and the values by name.

A field's meaning is the string below it (an attribute docstring); `deploy/settings_doc.py` reads those from the source.
Everything else is in the field's type: limits in `Meta`, the format of a text in `Meta(description=…)`, a unit in
`unit_of`, a secret in `SECRET`.

msgspec says `Invalid value 'comand' - at $.hosts[...].driver`: not which host, and not what is valid. After it has
refused settings, `find_faults` converts each table and each value on its own, and describes those that fail.
"""

import math
import re
import types
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from inspect import get_annotations
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Meta, Struct, ValidationError, inspect, structs

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


SHOWN_VALUE_CHARS = 80
_EXCESS = "..."
LOOKALIKE_ALPHABETS = ("CYRILLIC ", "GREEK ", "FULLWIDTH ")  # some of their letters look like those of ASCII


class SettingFault(NamedTuple):
    """A setting that is wrong. `problem` completes the sentence that starts with `name`; it contains the value."""

    name: str
    problem: str


class _Mode(NamedTuple):
    """`is_strict`: a number as text is a fault; a variable of the environment has no other form."""

    is_secret: bool = False
    is_strict: bool = False


def find_faults(kind: Any, value: Any, name: str = "", *, is_strict: bool = False) -> Iterator[SettingFault]:
    """Return the faults of `value` as a setting of type `kind`; nothing if it is valid.

    `is_strict`: a number as text is a fault. A variable of the environment has no other form.
    """
    yield from _find(kind, value, name, _Mode(is_strict=is_strict))


def _find(kind: Any, value: Any, name: str, mode: _Mode) -> Iterator[SettingFault]:
    try:
        msgspec.convert(value, kind, strict=mode.is_strict, dec_hook=convert_path)
    except ValidationError as error:
        is_secret = mode.is_secret or bool(metadata_extra(kind).get("secret"))
        yield from _find_inside(kind, value, name, error, mode._replace(is_secret=is_secret))


def _find_inside(kind: Any, value: Any, name: str, error: ValidationError, mode: _Mode) -> Iterator[SettingFault]:
    members = union_members(kind)
    tables = [member for member in members if is_struct(member)]
    if tables and isinstance(value, dict):
        chosen = tables[0] if len(tables) == 1 else None
        tags = {str(table.__struct_config__.tag): table for table in tables if table.__struct_config__.tag_field}
        if tags:
            tag_field = str(tables[0].__struct_config__.tag_field)
            chosen = tags.get(str(value.get(tag_field)))
            if chosen is None:
                yield _tag_fault(value, name, tag_field, tags)
                return
        if chosen is not None:
            yield from _find_in_table(chosen, value, name, error, mode)
            return
    plain = strip_annotations(members[0])
    faults: list[SettingFault] = []
    if len(members) == 1 and get_origin(plain) is dict and isinstance(value, dict):
        faults = list(_find_in_names(get_args(plain), value, name, mode))
    elif len(members) == 1 and get_origin(plain) in {tuple, list, frozenset} and isinstance(value, list):
        item = get_args(plain)[0]
        pairs = [(f"{name}[{place}]", one) for place, one in enumerate(value)]
        faults = [fault for path, one in pairs for fault in _find(item, one, path, mode)]
    if faults:
        yield from faults
        return
    shown = show(value, mode.is_secret) + ("" if mode.is_secret else explain_lookalikes(value))
    yield SettingFault(name, f"is {shown}: it must be {describe_type(kind)}")


def _tag_fault(value: dict[str, Any], name: str, tag_field: str, tags: Iterable[str]) -> SettingFault:
    field = join_name(name, tag_field)
    allowed = join_alternatives(tags)
    if tag_field not in value:
        return SettingFault(field, f"is missing: set it to {allowed}")
    given = value[tag_field]
    return SettingFault(field, f"is {show(given)}: it must be {allowed}{did_you_mean(given, tags)}")


def _find_in_table(
    kind: type[Struct], value: dict[str, Any], name: str, error: ValidationError, mode: _Mode
) -> Iterator[SettingFault]:
    fields = {field.encode_name: field for field in structs.fields(kind)}
    faults = [
        fault
        for key, field in fields.items()
        if key in value
        for fault in _find(field.type, value[key], join_name(name, key), mode._replace(is_secret=False))
    ]
    missing = [field for key, field in fields.items() if field.required and key not in value]
    faults += [
        SettingFault(join_name(name, field.encode_name), f"is missing: set it to {describe_type(field.type)}")
        for field in missing
    ]
    if kind.__struct_config__.forbid_unknown_fields:
        known = {*fields, *([kind.__struct_config__.tag_field] if kind.__struct_config__.tag_field else [])}
        faults += [unknown_fault(join_name(name, key), key, known) for key in value if key not in known]
    if not faults:  # the rule that the Struct itself checks, in its own words
        reason = str(error).rpartition(" - at `")[0] or str(error)
        faults = [SettingFault(name, f"is refused: {reason}" if name else reason)]
    yield from faults


def _find_in_names(
    types_of: tuple[Any, Any], value: Mapping[str, Any], name: str, mode: _Mode
) -> Iterator[SettingFault]:
    key_type, value_type = types_of
    for key, one in value.items():
        path = join_name(name, key)
        if any(True for _ in find_faults(key_type, key)):
            path += explain_lookalikes(key)
            yield SettingFault(path, f"has a name that is not allowed: it must be {describe_type(key_type)}")
        yield from _find(value_type, one, path, mode)


def unknown_fault(name: str, key: str, known: Iterable[str]) -> SettingFault:
    """Return the fault of a name that does not exist."""
    return SettingFault(name, f"is not a setting{did_you_mean(key, known)}")


def did_you_mean(given: Any, known: Iterable[str]) -> str:
    """Return ` (did you mean X?)`, or nothing if no known word is similar."""
    close = get_close_matches(str(given), list(known), n=1, cutoff=0.6)
    return explain_lookalikes(given) + (f" (did you mean {close[0]}?)" if close else "")


def explain_lookalikes(given: Any) -> str:
    """Return ` (its "а" is CYRILLIC SMALL LETTER A)` for the first letter that looks like another one, or nothing."""
    for char in given if isinstance(given, str) else "":
        name = unicodedata.name(char, "")
        if name.startswith(LOOKALIKE_ALPHABETS):
            return f' (its "{char}" is {name})'
    return ""


def join_name(name: str, key: str) -> str:
    """Return the name of `key` in the table `name`, quoted if it could be mistaken for something else."""
    shown = key if key and key.isprintable() and " " not in key else msgspec.json.encode(key).decode()
    return f"{name}.{shown}" if name else shown


def show(value: Any, is_secret: bool = False) -> str:
    """Return a value as it would be written in the file, shortened; a secret is masked."""
    if is_secret:
        return SECRET_MASK
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = msgspec.json.encode(value, enc_hook=str).decode()
    return text if len(text) <= SHOWN_VALUE_CHARS else text[:SHOWN_VALUE_CHARS] + _EXCESS


_PASSWORD_IN_URL = re.compile(r"(?<=://)([^/@:\s]*):[^/@\s]+@")


class SettingValue(NamedTuple):
    """One setting. `shown`: the value without secrets, as JSON types. `value`: the value itself, as JSON types."""

    name: str
    shown: Any
    value: Any


def walk_settings(settings: Struct, prefix: str = "") -> Iterator[SettingValue]:
    """Yield every setting of a Struct of settings, those of its tables as `hosts.gpu-1.on`."""
    config = settings.__struct_config__
    if config.tag_field is not None:
        yield SettingValue(join_name(prefix, config.tag_field), config.tag, config.tag)
    for field in structs.fields(settings):
        name, value = join_name(prefix, field.encode_name), getattr(settings, field.name)
        if is_struct(type(value)):
            yield from walk_settings(value, name)
        elif isinstance(value, dict) and value and all(is_struct(type(one)) for one in value.values()):
            for key, one in value.items():
                yield from walk_settings(one, join_name(name, key))
        else:
            plain = msgspec.to_builtins(value, enc_hook=str)
            yield SettingValue(name, _mask(plain, is_secret=bool(metadata_extra(field.type).get("secret"))), plain)


def _mask(plain: Any, *, is_secret: bool) -> Any:
    if not is_secret or not plain:
        return _PASSWORD_IN_URL.sub(rf"\1:{SECRET_MASK}@", plain) if isinstance(plain, str) else plain
    return dict.fromkeys(plain, SECRET_MASK) if isinstance(plain, dict) else SECRET_MASK


class SettingSnapshot(Struct, frozen=True):
    """A setting at one start: the shown value as JSON, and a keyed digest of the value, by which a change shows."""

    shown: str
    digest: str


def take_snapshot(settings: Struct, digest: Callable[[bytes], str]) -> dict[str, SettingSnapshot]:
    """Return every setting by name. `digest` must be keyed: a short secret could be guessed from a plain hash."""
    return {
        name: SettingSnapshot(msgspec.json.encode(shown).decode(), digest(msgspec.json.encode(value)))
        for name, shown, value in walk_settings(settings)
    }


def describe_changes(before: Mapping[str, SettingSnapshot], after: Mapping[str, SettingSnapshot]) -> dict[str, str]:
    """Return `old -> new` for every setting that differs; `changed` where only its secret part does."""
    changes = {}
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if (old and old.digest) == (new and new.digest):
            continue
        shown = (old.shown if old else "unset", new.shown if new else "unset")
        changes[name] = "changed" if shown[0] == shown[1] else f"{shown[0]} -> {shown[1]}"
    return changes
