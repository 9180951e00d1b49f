"""`lamplighter runner`."""

import sys
from pathlib import Path

import click
import uvloop

from bus.port import BusError
from lamplighter.cli.processes import config_option, format_option, level_option, read_settings
from lamplighter.cli.session import UNREACHABLE, USAGE
from runner.app import CannotServe, serve
from runner.settings import RunnerSettings
from schemas.endpoint import EndpointInvalid


@click.command()
@config_option
@level_option
@format_option
def runner(config: Path, log_level: str | None, log_format: str | None) -> None:
    """Run jobs on this host."""
    settings = read_settings(RunnerSettings, config, log_level, log_format)
    try:
        uvloop.run(serve(settings))
    except BusError as error:
        click.echo(f"lamplighter: {error}", err=True)
        sys.exit(UNREACHABLE)
    except (CannotServe, EndpointInvalid) as error:
        click.echo(f"lamplighter: {error}", err=True)
        sys.exit(USAGE)
