"""Print docs/settings.md from the settings Structs. `./justw docs` writes the file; a test compares it.

Names, types, defaults and units come from the Structs' fields, a meaning from the string below its field.
"""

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

import click
import msgspec
from msgspec import Struct

from edge.settings import EdgeSettings
from lamplighter.cli import COMMANDS, main
from lamplighter.cli.context import ClientSettings
from lamplighter.cli.relay import RelaySettings
from lamplighter.cli.up_options import OPTION_SETTINGS, REFUSED_SETTINGS
from runner.settings import RunnerSettings
from schemas.settings_schema import ANY_NAME, Setting, list_settings, variable_name

HEAD = """# Every setting

`./justw docs` makes this page from the settings in the code; a test keeps it current.

A process reads `lamplighter.toml` in its working folder, or the file that `--config` or `LAMPLIGHTER_CONFIG` names.
Edge, runner and relay of one machine may share the file. A variable overrides the file, and an option of the command
line overrides both. Lists in variables are JSON. A table whose name you choose, such as `[hosts.gpu-1]`, has no
variables for its settings: `LAMPLIGHTER_HOSTS` holds all these tables as JSON.

```sh
lamplighter config check                # what is wrong, with the allowed values; exit code 2
lamplighter config show --edge          # all settings, and where each came from; secrets are masked
```

A name that is not a setting is an error. A setting that was renamed also works under its name of the last release, with
a warning.
"""
CLIENT_HEAD = """## Client commands

`submit`, `jobs`, `hosts` and all other commands that talk to an edge.
"""
UP_HEAD = """## `lamplighter up`

`up` starts an edge and a runner, and reads the settings of both from the same file. These options replace settings:
"""
UP_REFUSED = """`up` decides these settings itself. It ends with exit code 2 if the file or a variable sets one of them:
"""
COMMAND_HEAD = """## Variables of the command line

Variables that stand for an option.
"""
SECTIONS: Mapping[str, tuple[str, type[Struct]]] = {
    "edge": ("Edge", EdgeSettings),
    "runner": ("Runner", RunnerSettings),
    "relay": ("Relay", RelaySettings),
}
HOST_TABLE = f"hosts.{ANY_NAME}"
COLUMNS = ("setting", "type", "default", "unit", "meaning", "variable")


@functools.cache
def meanings(kind: type[Struct]) -> Mapping[str, str]:
    """Return the text below each field of a Struct, by the field's name."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(node, ast.ClassDef)  # noqa: S101 - the source of a class
    found: dict[str, str] = {}
    for field, below in zip(node.body, node.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
            case _:
                pass
    return found


def meaning_of(setting: Setting) -> str:
    """Return the meaning of a setting, empty if its field has none. The driver's is its Struct's first line."""
    if setting.attribute == setting.owner.__struct_config__.tag_field:
        return (inspect.getdoc(setting.owner) or "").partition("\n")[0]
    return meanings(setting.owner).get(setting.attribute, "")


def _table_of(setting: Setting) -> str:
    """Return the TOML table of a setting, with the driver where it belongs to one."""
    table = setting.name.rpartition(".")[0]
    tag = setting.owner.__struct_config__.tag
    if table != HOST_TABLE or not tag:
        return table
    is_tagged = tag != setting.owner.__name__  # msgspec's tag for a class that names none: the base of all drivers
    return f'{table} with `driver = "{tag}"`' if is_tagged else f"{table} with any driver"


def _row(setting: Setting) -> str:
    variable = "" if f".{ANY_NAME}." in setting.name else f"`{variable_name(setting.name)}`"
    cells = (
        f"`{setting.name.rpartition('.')[2]}`",
        setting.allowed,
        "required" if setting.is_required else _show_default(setting.default),
        setting.unit,
        meaning_of(setting),
        variable,
    )
    return _cells(cells)


def _cells(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _show_default(default: object) -> str:
    if default is None:
        return "unset"
    plain = sorted(default) if isinstance(default, frozenset) else default
    return f"`{msgspec.json.encode(plain, enc_hook=str).decode()}`"


def _tables(settings: Iterable[Setting]) -> Iterator[str]:
    in_order: dict[str, list[Setting]] = {"": []}  # settings outside of tables come first
    for setting in settings:
        in_order.setdefault(_table_of(setting), []).append(setting)
    for table, group in in_order.items():
        if not group:
            continue
        name, separator, rest = table.partition(" ")
        title = f"### [{name}]{separator}{rest}\n\n" if table else ""
        yield title + "\n".join([_cells(COLUMNS), "|---" * len(COLUMNS) + "|", *map(_row, group)])
        yield from _defaults_without_table(group)


def _defaults_without_table(settings: Iterable[Setting]) -> Iterator[str]:
    others = [setting for setting in settings if setting.default_without_table != setting.default]
    for table, group in groupby(others, _table_of):
        values = [f"`{setting.attribute}` is {_show_default(setting.default_without_table)}" for setting in group]
        yield f"Without any `[{table}]` in the file: {', '.join(values)}."


def _process_sections() -> Iterator[str]:
    shown: set[tuple[type[Struct], str]] = set()
    for verb, (title, kind) in SECTIONS.items():
        yield f"## {title}\n\nSettings of `lamplighter {verb}`."
        settings = {(setting.owner, setting.name): setting for setting in list_settings(kind)}  # not once per driver
        yield from _tables(setting for key, setting in settings.items() if key not in shown)
        known = [setting for key, setting in settings.items() if key in shown]
        if known:
            tables = sorted({_table_of(setting).partition(" ")[0] for setting in known})
            yield f"Also, as above: {', '.join(f'`[{table}]`' for table in tables)}."
            yield from _defaults_without_table(known)
        shown |= settings.keys()


def _up_section() -> Iterator[str]:
    yield UP_HEAD.strip()
    rows = [_cells((f"`{option}`", f"`{setting}`")) for option, setting in OPTION_SETTINGS.items()]
    yield "\n".join([_cells(("option", "setting")), "|---|---|", *rows])
    yield UP_REFUSED.strip()
    rows = [_cells((f"`{setting}`", advice)) for setting, advice in REFUSED_SETTINGS.items()]
    yield "\n".join([_cells(("setting", "instead")), "|---|---|", *rows])


def _command_variables() -> Iterator[tuple[str, str, str]]:
    for verb in COMMANDS:
        command = main.get_command(click.Context(main), verb)
        for parameter in command.params if command else ():
            if isinstance(parameter, click.Option) and isinstance(parameter.envvar, str):
                yield parameter.envvar, f"`lamplighter {verb} {parameter.opts[0]}`", parameter.help or ""


def _command_section() -> Iterator[str]:
    yield COMMAND_HEAD.strip()
    rows = []
    for variable, group in groupby(sorted(_command_variables()), key=lambda row: row[0]):
        uses = list(group)
        rows.append(_cells((f"`{variable}`", ", ".join(use for _, use, _ in uses), uses[0][2])))
    yield "\n".join([_cells(("variable", "option", "meaning")), "|---|---|---|", *rows])


def document() -> str:
    """Return the whole text of docs/settings.md."""
    client = [CLIENT_HEAD.strip(), *_tables(list_settings(ClientSettings))]
    parts = [HEAD.strip(), *_process_sections(), *_up_section(), *client, *_command_section()]
    return re.sub(r"\n{3,}", "\n\n", "\n\n".join(parts)) + "\n"


if __name__ == "__main__":
    print(document(), end="")
