"""Find the settings that are wrong, each with its name, its value and the values that are allowed.

msgspec says `Invalid value 'comand' - at $.hosts[...].driver`: not which host, and not what is valid. After it has
refused settings, the walk here converts each table and each value on its own, and describes those that fail.
"""

import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple, get_args, get_origin

import msgspec
from msgspec import Struct, ValidationError, structs

from schemas.settings_schema import (
    SECRET_MASK,
    convert_path,
    describe_type,
    is_struct,
    join_alternatives,
    metadata_extra,
    strip_annotations,
    union_members,
)

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
