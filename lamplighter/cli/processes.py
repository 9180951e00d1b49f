"""`lamplighter edge` and `lamplighter runner`: one process each, settings from lamplighter.toml and the environment."""

import asyncio
import os
import sys
from pathlib import Path
from typing import TypeVar

import click

from edge.serve import serve as serve_edge
from edge.settings import EdgeSettings
from lamplighter.cli.logs import configure
from lamplighter.cli.session import USAGE
from runner.app import serve as serve_runner
from runner.settings import RunnerSettings
from schemas.settings import SettingsInvalid, load

T = TypeVar("T", EdgeSettings, RunnerSettings)

config_option = click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), default=Path("lamplighter.toml"), show_default=True
)
level_option = click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
format_option = click.option("--log-format", type=click.Choice(["json", "text"]))


def read_settings(kind: type[T], config: Path, log_level: str | None, log_format: str | None) -> T:
    """The settings of this process, logging set up by them; a mistake ends the command with exit 2."""
    chosen = {"LAMPLIGHTER_LOG_LEVEL": log_level, "LAMPLIGHTER_LOG_FORMAT": log_format}
    environ = os.environ | {name: value for name, value in chosen.items() if value is not None}
    try:
        settings = load(kind, config.read_text() if config.exists() else "", environ)
    except SettingsInvalid as error:
        click.echo(f"lamplighter: {error}", err=True)
        sys.exit(USAGE)
    configure(settings.log_level, settings.log_format)
    return settings


@click.command()
@config_option
@level_option
@format_option
def edge(config: Path, log_level: str | None, log_format: str | None) -> None:
    """Serve the edge: HTTP and WebSocket for clients, in front of the broker."""
    asyncio.run(serve_edge(read_settings(EdgeSettings, config, log_level, log_format)))


@click.command()
@config_option
@level_option
@format_option
def runner(config: Path, log_level: str | None, log_format: str | None) -> None:
    """Run jobs on this host."""
    asyncio.run(serve_runner(read_settings(RunnerSettings, config, log_level, log_format)))
