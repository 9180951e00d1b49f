"""The parts that commands which start a process share: settings, logging, the limit of open files, one-line errors.

Settings come from lamplighter.toml and the environment. Logs go to stderr, one line for each event.
"""

import os
import resource
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import structlog

from lamplighter.cli.context import USAGE, error_line
from lamplighter.cli.display import escape_controls
from lamplighter.cli.language import say
from lamplighter.cli.log_output import configure_logging
from lamplighter.cli.redaction import Redactor, secrets_in
from lamplighter.cli.settings_file import RETIRED_SETTINGS, SettingsFile, read_settings_file
from schemas.settings_loader import SettingsInvalid

T = TypeVar("T")

_log = structlog.get_logger()


@contextmanager
def exit_on_error(exits: Mapping[type[Exception], int]) -> Iterator[None]:
    """Exit with the code in `exits` and a one-line error, also if the error came through task groups."""
    error: BaseException | None = None
    try:
        yield
    except* tuple(exits) as group:
        error = _first_error(group)
    if error is not None:  # after the handler: Python 3.11.2 puts what a handler of a group raises into a group
        line = Redactor().redact(escape_controls(say(error_line(error))))
        click.echo(f"lamplighter: {line}", err=True)
        sys.exit(next(code for kind, code in exits.items() if isinstance(error, kind)))


def _first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    inner = group.exceptions[0]
    return _first_error(inner) if isinstance(inner, BaseExceptionGroup) else inner


level_option = click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Lowest level to log [info]."
)
format_option = click.option("--log-format", type=click.Choice(["json", "text"]), help="Format of the log [text].")


def raise_open_file_limit() -> None:
    """Raise the soft limit of open files to the hard one. The usual 1,024 would also limit the connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:  # the hard limit is above the limit of the kernel
        _log.warning("file_limit_raise_failed", soft=soft, hard=hard, error=str(error))


def disable_core_dumps() -> None:
    """Keep a crash from writing the memory of this process, which holds keys and secrets of jobs, to the disk."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def read_settings(
    kind: type[T], config: Path, log_level: str | None, log_format: str | None, options: Mapping[str, str | None] = {}
) -> T:
    """Return the settings of this process, and configure logging by them. Exit with code 2 if they are invalid.

    `options`: the values of more options, by the variable that each replaces.
    """
    chosen = {"LAMPLIGHTER_LOG_LEVEL": log_level, "LAMPLIGHTER_LOG_FORMAT": log_format, **options}
    environ = os.environ | {name: value for name, value in chosen.items() if value is not None}
    with exit_on_error({SettingsInvalid: USAGE}):
        file = read_settings_file(config)
        settings = file.load(kind, environ)
    logged: Any = settings
    configure_logging(logged.log_level, logged.log_format, secrets_in(logged))
    warn_of_old_names(file, (kind,), environ)
    return settings


def warn_of_old_names(file: SettingsFile, kinds: Iterable[type], environ: Mapping[str, str]) -> None:
    """Log the settings whose names will stop working, or have stopped."""
    for old, new in file.renamed(kinds, environ):
        _log.warning("setting_renamed", name=old, new_name=new, fix="use the new name: the next release drops the old")
    for name in file.retired_names():
        _log.warning("setting_retired", name=name, file=str(file.path), reason=RETIRED_SETTINGS[name], fix="remove it")
