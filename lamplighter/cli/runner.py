"""`lamplighter runner`: run jobs on this host."""

import os
from functools import partial
from pathlib import Path

import click
import msgspec
import uvloop

from bus.interface import BusError
from bus.secret_files import PRIVATE_UMASK
from lamplighter.cli import language
from lamplighter.cli.context import REFUSED, UNREACHABLE, USAGE
from lamplighter.cli.join_token import join_option, read_token
from lamplighter.cli.process_setup import (
    ServiceNotifier,
    disable_core_dumps,
    exit_on_error,
    format_option,
    level_option,
    raise_open_file_limit,
    read_settings,
)
from lamplighter.cli.server_commands import config_option
from runner.app import RunnerStartError, serve
from runner.assets.port import EdgeUnavailable
from runner.host.enrollment import (
    CertificateMismatch,
    EnrollmentUnreadable,
    HostRemoved,
    JoinNotCompleted,
    JoinRefused,
    join,
)
from runner.settings import RunnerSettings
from schemas.credentials import JoinTokenInvalid
from schemas.endpoint import EndpointInvalid

EXIT_CODES: dict[type[Exception], int] = {
    BusError: UNREACHABLE,
    RunnerStartError: USAGE,
    EndpointInvalid: USAGE,
    EnrollmentUnreadable: USAGE,
    JoinNotCompleted: USAGE,
    JoinTokenInvalid: USAGE,
    CertificateMismatch: REFUSED,
    JoinRefused: REFUSED,
    EdgeUnavailable: UNREACHABLE,
    HostRemoved: REFUSED,
}

STOP_MARGIN_S = 60.0  # after the grace time a drain still stops jobs, removes warm containers and writes records


@click.command()
@config_option
@level_option
@format_option
@join_option
@click.option(
    "--endpoints",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of an image (its endpoint.toml), or of several [images]. May be repeated.",
)
@click.option(
    "--until-idle",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    help="End, with exit code 0, after this time without work.",
)
def runner(  # noqa: PLR0913, PLR0917 - click calls it with every option
    config: Path,
    log_level: str | None,
    log_format: str | None,
    token: str | None,
    endpoints: tuple[Path, ...],
    until_idle: float | None,
) -> None:
    """Run jobs on this host."""
    os.umask(PRIVATE_UMASK)
    notifier = ServiceNotifier.from_environment(os.environ)
    folders = msgspec.json.encode([str(folder) for folder in endpoints]).decode() if endpoints else None
    overrides = {
        "LAMPLIGHTER_ENDPOINTS": folders,
        "LAMPLIGHTER_UNTIL_IDLE_S": None if until_idle is None else str(until_idle),
    }
    settings = read_settings(RunnerSettings, config, log_level, log_format, overrides)
    raise_open_file_limit()
    disable_core_dumps()
    with exit_on_error(EXIT_CODES):
        if token is not None:
            join(settings, read_token(token))
        uvloop.run(_serve(settings, notifier))


async def _serve(settings: RunnerSettings, notifier: ServiceNotifier) -> None:
    async with notifier.pinging():
        await serve(
            settings,
            say=lambda line: click.echo(f"lamplighter: {language.say(line)}"),
            ready=notifier.ready,
            stopping=partial(notifier.stopping, settings.grace_s + STOP_MARGIN_S),
        )
