"""`lamplighter edge`: serve the edge in this process."""

import os
from pathlib import Path

import click
import uvloop

from bus.interface import BusError
from bus.secret_files import PRIVATE_UMASK
from edge.notify.targets import TargetInvalid
from edge.owners.secret_keys import SecretKeysUnusable
from edge.power.drivers.factory import DriverUnusable
from edge.process import EdgeStartError, serve
from edge.settings import EdgeSettings
from edge.store.port import StoreError
from lamplighter.cli.context import UNREACHABLE, USAGE
from lamplighter.cli.process_setup import (
    disable_core_dumps,
    exit_on_error,
    format_option,
    level_option,
    raise_open_file_limit,
    read_settings,
)
from lamplighter.cli.server_commands import config_option
from schemas.endpoint import EndpointInvalid

EXIT_CODES: dict[type[Exception], int] = {
    BusError: UNREACHABLE,
    EdgeStartError: USAGE,
    DriverUnusable: USAGE,
    EndpointInvalid: USAGE,
    SecretKeysUnusable: USAGE,
    StoreError: USAGE,
    TargetInvalid: USAGE,
}


@click.command()
@config_option
@level_option
@format_option
def edge(config: Path, log_level: str | None, log_format: str | None) -> None:
    """Serve the edge: HTTP and WebSocket for clients, in front of the broker."""
    os.umask(PRIVATE_UMASK)
    settings = read_settings(EdgeSettings, config, log_level, log_format)
    raise_open_file_limit()
    disable_core_dumps()
    with exit_on_error(EXIT_CODES):
        uvloop.run(serve(settings))
