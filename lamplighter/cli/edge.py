"""`lamplighter edge`."""

import os
from pathlib import Path

import click
import uvloop

from bus.port import BusError
from bus.private import UMASK
from edge.power.drivers.build import DriverMissing
from edge.serve import CannotServe, serve
from edge.settings import EdgeSettings
from edge.store.port import StoreError
from lamplighter.cli.processes import (
    config_option,
    format_option,
    level_option,
    one_line,
    raise_open_files,
    read_settings,
)
from lamplighter.cli.session import UNREACHABLE, USAGE
from schemas.endpoint import EndpointInvalid

EXITS: dict[type[Exception], int] = {
    BusError: UNREACHABLE,
    CannotServe: USAGE,
    DriverMissing: USAGE,
    EndpointInvalid: USAGE,
    StoreError: USAGE,
}


@click.command()
@config_option
@level_option
@format_option
def edge(config: Path, log_level: str | None, log_format: str | None) -> None:
    """Serve the edge: HTTP and WebSocket for clients, in front of the broker."""
    os.umask(UMASK)
    settings = read_settings(EdgeSettings, config, log_level, log_format)
    raise_open_files()
    with one_line(EXITS):
        uvloop.run(serve(settings))
