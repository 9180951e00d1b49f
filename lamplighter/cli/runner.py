"""`lamplighter runner`."""

import os
from pathlib import Path

import click
import uvloop

from bus.pins import WrongCertificate
from bus.port import BusError
from bus.private import UMASK
from lamplighter.cli.join_token import OPTION, VARIABLE, read_token
from lamplighter.cli.processes import (
    config_option,
    format_option,
    level_option,
    one_line,
    raise_open_files,
    read_settings,
)
from lamplighter.cli.session import REFUSED, UNREACHABLE, USAGE
from runner.app import CannotServe, serve
from runner.joining import CannotJoin, join
from runner.membership import Removed
from runner.settings import RunnerSettings
from schemas.endpoint import EndpointInvalid
from schemas.joining import TokenInvalid

EXITS: dict[type[Exception], int] = {
    BusError: UNREACHABLE,
    CannotServe: USAGE,
    EndpointInvalid: USAGE,
    CannotJoin: USAGE,
    TokenInvalid: USAGE,
    WrongCertificate: REFUSED,
    Removed: REFUSED,
}


@click.command()
@config_option
@level_option
@format_option
@click.option(
    OPTION,
    "token",
    metavar="TOKEN",
    envvar=VARIABLE,
    help="What `lamplighter hosts add` printed, kept for later starts; -: from standard input; @FILE: from a file.",
)
def runner(config: Path, log_level: str | None, log_format: str | None, token: str | None) -> None:
    """Run jobs on this host."""
    os.umask(UMASK)
    settings = read_settings(RunnerSettings, config, log_level, log_format)
    raise_open_files()
    with one_line(EXITS):
        if token is not None:
            join(settings, read_token(token))
        uvloop.run(serve(settings, say=lambda line: click.echo(f"lamplighter: {line}")))
