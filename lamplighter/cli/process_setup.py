"""The parts that commands which start a process share: settings, logging, the limit of open files, one-line errors.

Settings come from lamplighter.toml and the environment. Logs go to stderr, one line for each event.
"""

import logging
import os
import resource
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import click
import structlog

from lamplighter.cli.context import USAGE, error_line
from lamplighter.cli.display import escape_controls
from lamplighter.cli.language import say
from lamplighter.cli.settings_file import RETIRED_SETTINGS, SettingsFile, read_settings_file
from schemas.settings_loader import SettingsInvalid

T = TypeVar("T")
SECRET_FIELDS = frozenset({"key", "password", "secret", "token", "authorization"})

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
        click.echo(f"lamplighter: {escape_controls(say(error_line(error)))}", err=True)
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
    configure_logging(logged.log_level, logged.log_format)
    warn_of_old_names(file, (kind,), environ)
    return settings


def warn_of_old_names(file: SettingsFile, kinds: Iterable[type], environ: Mapping[str, str]) -> None:
    """Log the settings whose names will stop working, or have stopped."""
    for old, new in file.renamed(kinds, environ):
        _log.warning("setting_renamed", name=old, new_name=new, fix="use the new name: the next release drops the old")
    for name in file.retired_names():
        _log.warning("setting_retired", name=name, file=str(file.path), reason=RETIRED_SETTINGS[name], fix="remove it")


class _StderrLogger(structlog.WriteLogger):
    """A logger that loses a line instead of raising: the disk of the log may be full."""

    def msg(self, message: str) -> None:
        with suppress(OSError):
            super().msg(message)

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


def _mask_secrets(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    """Replace the values of fields that are named like a secret."""
    return {name: "***" if name in SECRET_FIELDS else value for name, value in event.items()}


def _escape_event(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    """Escape control characters: a terminal that shows the log must not obey text of others."""
    return {name: escape_controls(value) if isinstance(value, str) else value for name, value in event.items()}


def silence_tls_warning() -> None:
    """Drop the warning that asyncio logs whenever nats-py closes a TLS connection. It has no consequence."""
    logging.getLogger("asyncio").addFilter(_is_not_tls_warning)


def _is_not_tls_warning(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("returning true from eof_received()")


def configure_logging(level: str, form: str) -> None:
    """Send the structlog events of this process to stderr, as JSON or text, and other loggers from WARNING up."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _mask_secrets,
    ]
    # The other traceback formatters print local variables, and a key or a password may be among them.
    plain = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
    last: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if form == "json"
        else [_escape_event, plain]
    )
    structlog.configure(
        processors=shared + last,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: _StderrLogger(sys.stderr),
    )
    silence_tls_warning()
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
