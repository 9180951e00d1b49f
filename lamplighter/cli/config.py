"""`lamplighter config`: check settings files, and show the effective settings and where each came from."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
from msgspec import Struct
from rich.text import Text

from edge.settings import EdgeSettings
from lamplighter.cli import display
from lamplighter.cli.context import USAGE, ClientSettings
from lamplighter.cli.join_token import JOIN_VARIABLE
from lamplighter.cli.language import LANGUAGE_VARIABLE, say
from lamplighter.cli.process_setup import (
    RETIRED_SETTINGS,
    SettingsFile,
    exit_on_error,
    read_settings_file,
)
from lamplighter.cli.relay import RelaySettings
from lamplighter.cli.server_commands import CONFIG_VARIABLE, DEFAULT_CONFIG
from runner.host.enrollment import ENROLLMENT_FILE, EnrollmentUnreadable, apply_enrollment
from runner.settings import RunnerSettings
from schemas.settings_loader import (
    SettingsInvalid,
    describe_fault,
    find_variable,
    merge_given,
    select_variables,
)
from schemas.settings_schema import SETTING_PREFIX, find_faults, walk_settings

ROLES: Mapping[str, type[Struct]] = {"edge": EdgeSettings, "runner": RunnerSettings, "relay": RelaySettings}
COMMAND_VARIABLES = frozenset({CONFIG_VARIABLE, JOIN_VARIABLE, LANGUAGE_VARIABLE})
DEFAULT = "default"


class EffectiveSetting(NamedTuple):
    """One setting of a process. `source`: a file, a variable, or `default`."""

    name: str
    value: Any
    source: str


def _role_options(command: Any) -> Any:
    for role in reversed(list(ROLES)):
        command = click.option(f"--{role}", role, is_flag=True, help=f"Only the settings of `lamplighter {role}`.")(
            command
        )
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def _chosen_roles(given: Mapping[str, Any]) -> list[str]:
    return [role for role in ROLES if given[role]] or list(ROLES)


def _read(path: Path | None) -> SettingsFile:
    return read_settings_file(path or Path(os.environ.get(CONFIG_VARIABLE) or DEFAULT_CONFIG))


def check_file(file: SettingsFile, roles: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """Return a line for everything that is wrong with the file and with the variables that override it."""
    lines: dict[str, None] = {}
    try:
        for role in roles:
            given = merge_given(ROLES[role], file.text, environ, str(file.path))
            faults = find_faults(ROLES[role], given)
            lines |= dict.fromkeys(describe_fault(fault, environ, str(file.path)) for fault in faults)
        lines |= dict.fromkeys(file.unknown_names())
    except SettingsInvalid as error:
        return [str(error)]
    return list(lines)


def warnings_of(file: SettingsFile, environ: Mapping[str, str]) -> list[str]:
    """Return a line for each name that works but should be changed, and for each variable that nothing reads."""
    kinds: tuple[type[Struct], ...] = (*ROLES.values(), ClientSettings)
    known = COMMAND_VARIABLES.union(*(select_variables(kind, environ) for kind in kinds))
    unread = [name for name in environ if name.startswith(SETTING_PREFIX) and name not in known]
    return [
        *(f"{old} is the old name of {new}: use the new name" for old, new in file.renamed(ROLES.values(), environ)),
        *(f"{name} is not read any more ({RETIRED_SETTINGS[name]}): remove it" for name in file.retired_names()),
        *(f"the variable {name} is not read by any process: correct its spelling, or unset it" for name in unread),
    ]


def effective_settings(role: str, file: SettingsFile, environ: Mapping[str, str]) -> list[EffectiveSetting]:
    """Return all settings of a process, each with where it came from; secrets are masked. Raises SettingsInvalid."""
    kind = ROLES[role]
    settings: Struct = file.load(kind, environ)
    given = merge_given(kind, file.text, environ, str(file.path))
    rows = [
        EffectiveSetting(name, shown, _source_of(name, given, file, environ))
        for name, shown, _value in walk_settings(settings)
    ]
    if not isinstance(settings, RunnerSettings):
        return rows
    enrollment = str(settings.data / ENROLLMENT_FILE)
    joined = walk_settings(apply_enrollment(settings))
    changed = {name: EffectiveSetting(name, shown, enrollment) for name, shown, _value in joined}
    return [row if changed[row.name].value == row.value else changed[row.name] for row in rows]


def _source_of(name: str, given: dict[str, Any], file: SettingsFile, environ: Mapping[str, str]) -> str:
    branch: Any = given
    for part in name.split("."):
        if not isinstance(branch, dict) or part not in branch:
            return DEFAULT
        branch = branch[part]
    return find_variable(name, environ) or str(file.path)


@click.group()
def config() -> None:
    """Check settings files, and show the effective settings."""


@config.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, dir_okay=False), metavar="[FILE]...")
@_role_options
def check(files: tuple[Path, ...], as_json: bool, **given: Any) -> None:
    """Check lamplighter.toml, or each FILE, and the variables. Exit code 2 if anything is wrong."""
    roles = _chosen_roles(given)
    answers, is_wrong = [], False
    for path in files or (None,):
        file: SettingsFile | None = None
        try:
            file = _read(path)
            errors, warnings = check_file(file, roles, os.environ), warnings_of(file, os.environ)
        except SettingsInvalid as error:
            errors, warnings = [str(error)], []
        is_wrong = is_wrong or bool(errors)
        name = str(file.path if file else path or DEFAULT_CONFIG)
        answers.append({"file": name, "errors": errors, "warnings": warnings})
    if as_json:
        sys.stdout.write(display.json_line(answers))
    else:
        for answer in answers:
            _print_answer(answer, roles)
    if is_wrong:
        sys.exit(USAGE)


def _print_answer(answer: Mapping[str, Any], roles: Sequence[str]) -> None:
    for line in answer["errors"]:
        click.echo(f"lamplighter: {display.escape_controls(say(line))}", err=True)
    for line in answer["warnings"]:
        click.echo(say(f"warning: {display.escape_controls(line)}"), err=True)
    if not answer["errors"]:
        click.echo(say(f"{answer['file']}: valid for {', '.join(roles)}"))


@config.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@_role_options
def show(file: Path | None, as_json: bool, **given: Any) -> None:
    """Print the effective settings: file, variables and defaults. Secrets are masked."""
    with exit_on_error({SettingsInvalid: USAGE, EnrollmentUnreadable: USAGE}):
        source = _read(file)
        answers = {role: effective_settings(role, source, os.environ) for role in _chosen_roles(given)}
    if as_json:
        sys.stdout.write(display.json_line({role: [row._asdict() for row in rows] for role, rows in answers.items()}))
        return
    out = display.make_console()
    for role, settings in answers.items():
        rows = [
            (name, msgspec.json.encode(value).decode(), Text(where, "" if where == DEFAULT else "green"))
            for name, value, where in settings
        ]
        display.print_table(out, (role.upper(), "VALUE", "FROM"), rows, "no settings")
