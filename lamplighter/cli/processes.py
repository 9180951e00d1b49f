"""What `lamplighter edge` and `lamplighter runner` share: settings from lamplighter.toml and the environment."""

import os
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import structlog

from edge.settings import EdgeSettings
from lamplighter.cli.logs import configure
from lamplighter.cli.relaying import RelaySettings
from lamplighter.cli.session import USAGE, told
from lamplighter.cli.terminal import visible
from runner.settings import RunnerSettings
from schemas.settings import SettingsInvalid, load, unknown

T = TypeVar("T")
KINDS = (EdgeSettings, RunnerSettings, RelaySettings)  # who shares one lamplighter.toml

_log = structlog.get_logger()


@contextmanager
def one_line(exits: Mapping[type[Exception], int]) -> Iterator[None]:
    """An error named in `exits` ends the command in one line, with its code, whatever task groups it came through."""
    try:
        yield
    except* tuple(exits) as group:
        error = _first(group)
        click.echo(f"lamplighter: {visible(told(error))}", err=True)
        sys.exit(next(code for kind, code in exits.items() if isinstance(error, kind)))


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


DEFAULT = Path("lamplighter.toml")
config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT,
    show_default=True,
    envvar="LAMPLIGHTER_CONFIG",
    help="The settings, beside LAMPLIGHTER_* variables, which win.",
)
level_option = click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="What to log from [info]."
)
format_option = click.option("--log-format", type=click.Choice(["json", "text"]), help="How to log [text].")


def raise_open_files() -> None:
    """Raise the soft limit of open files to the hard one. The usual 1,024 would be the number of connections too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:  # a hard limit above what the kernel itself allows
        _log.warning("open_files_not_raised", soft=soft, hard=hard, error=str(error))


def _text(config: Path) -> str:
    """The file's text. Only the file that nobody named may be missing."""
    return "" if config == DEFAULT and not config.exists() else config.read_text()


def read_settings(kind: type[T], config: Path, log_level: str | None, log_format: str | None) -> T:
    """The settings of this process, logging set up by them; a mistake ends the command with exit 2."""
    chosen = {"LAMPLIGHTER_LOG_LEVEL": log_level, "LAMPLIGHTER_LOG_FORMAT": log_format}
    environ = os.environ | {name: value for name, value in chosen.items() if value is not None}
    try:
        text = _text(config)
        settings = load(kind, text, environ)
    except (SettingsInvalid, OSError, UnicodeDecodeError) as error:
        click.echo(f"lamplighter: {error}", err=True)
        sys.exit(USAGE)
    said: Any = settings
    configure(said.log_level, said.log_format)
    for name in unknown(KINDS, text):
        _log.warning("setting_unknown", name=name, file=str(config), mend="correct its spelling, or take it out")
    return settings
