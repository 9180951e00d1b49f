"""`lamplighter edge`."""

import sys
from pathlib import Path

import click
import uvloop

from bus.port import BusError
from edge.power.drivers.build import DriverMissing
from edge.serve import CannotServe, serve
from edge.settings import EdgeSettings
from edge.store.port import StoreError
from lamplighter.cli.processes import config_option, format_option, level_option, read_settings
from lamplighter.cli.session import UNREACHABLE, USAGE
from schemas.endpoint import EndpointInvalid


@click.command()
@config_option
@level_option
@format_option
def edge(config: Path, log_level: str | None, log_format: str | None) -> None:
    """Serve the edge: HTTP and WebSocket for clients, in front of the broker."""
    settings = read_settings(EdgeSettings, config, log_level, log_format)
    try:
        uvloop.run(serve(settings))
    except BusError as error:
        click.echo(f"lamplighter: {error}", err=True)
        sys.exit(UNREACHABLE)
    except (CannotServe, DriverMissing, EndpointInvalid, StoreError) as error:
        click.echo(f"lamplighter: {error}", err=True)
        sys.exit(USAGE)
