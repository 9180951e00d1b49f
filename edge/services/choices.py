"""What an enumeration allows, told to who sent something else: msgspec says only what was wrong."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import inspect

_WRONG = "Invalid enum value "
_STEP = re.compile(r"\.([^.\[]+)|\[([^\]]*)\]")  # of `$.a.b[0]`


def with_choices(message: str, kind: Any, path: str = "$") -> str:
    """msgspec's `message` of what stands at `path` of a `kind`, with what may stand there where it names no choice."""
    if not message.startswith(_WRONG):
        return message
    steps = [name or item for name, item in _STEP.findall(path)]
    choices = [value for one in _at(inspect.type_info(kind), steps) for value in _values(one)]
    return f"{message}: it is one of {', '.join(map(str, choices))}" if choices else message


def _at(kind: inspect.Type, steps: Sequence[str]) -> Iterator[inspect.Type]:
    """Everything that may stand behind these steps."""
    match kind:
        case inspect.Metadata(type=inner):
            yield from _at(inner, steps)
        case inspect.UnionType(types=several):
            for one in several:
                yield from _at(one, steps)
        case inspect.StructType(fields=fields) if steps:
            for field in fields:
                if field.encode_name == steps[0]:
                    yield from _at(field.type, steps[1:])
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item) if steps:
            yield from _at(item, steps[1:])
        case _ if not steps:
            yield kind


def _values(kind: inspect.Type) -> list[Any]:
    match kind:
        case inspect.EnumType(cls=enum):
            return [member.value for member in enum]
        case inspect.LiteralType(values=values):
            return list(values)
    return []
