"""The values of settings by name: as they are shown, without secrets, and what changed between two starts."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct, structs

from schemas.settings_faults import join_name
from schemas.settings_schema import SECRET_MASK, is_struct, metadata_extra

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
