"""`lamplighter health`: tell whether the edge, the runner or the relay of this machine works, as a container asks.

A container engine starts it every few seconds, also while all cores are busy. So it reads only the settings that it
needs, and imports neither edge nor runner: their imports take three times as long as everything here.
"""

import os
import sys
import time
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import click
from msgspec import Struct

from lamplighter.cli.language import say
from lamplighter.cli.server_commands import config_option, read_settings_text
from schemas.settings_loader import SettingsInvalid, load_settings

UNHEALTHY, USAGE = 1, 2
TIMEOUT_S = 20.0  # below the timeout of the images' HEALTHCHECK, so that the reason is printed
MAX_AGE_S = 30.0  # a runner renews its file every 3 s, and an outage of a few seconds is no fault
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where a server that binds to all is reached


class HealthSettings(Struct, frozen=True):
    """The settings of edge, runner and relay that tell how to ask for their health."""

    bind: str = "127.0.0.1"
    port: int = 8000
    health_file: Path | None = None


@click.command()
@click.argument("process", type=click.Choice(["edge", "runner", "relay"]))
@config_option
def health(process: str, config: Path) -> None:
    """Check whether the PROCESS with the same settings on this machine works. Exit code 0 if it does, else 1.

    The edge is asked for /readyz. Runner and relay renew the file that `health_file` names.
    """
    try:
        settings = load_settings(HealthSettings, read_settings_text(config), os.environ, str(config))
    except SettingsInvalid as error:
        click.echo(f"lamplighter: {say(str(error))}", err=True)
        sys.exit(USAGE)
    fault = _fault_of_edge(settings) if process == "edge" else fault_of_file(settings.health_file)
    if fault is not None:
        click.echo(f"lamplighter: {say(f'the {process} is not healthy: {fault}')}", err=True)
        sys.exit(UNHEALTHY)
    click.echo(say(f"the {process} is healthy"))


def _fault_of_edge(settings: HealthSettings) -> str | None:
    """Return why the edge takes no jobs now, None if it does."""
    host = ANY_ADDRESS.get(settings.bind, settings.bind)
    url = f"http://{f'[{host}]' if ':' in host else host}:{settings.port}/readyz"
    connection = HTTPConnection(host, settings.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        reply = connection.getresponse()
        text = reply.read().decode(errors="replace").strip()
    except (OSError, HTTPException) as error:
        return f"no answer from {url} ({error}): read its log"
    finally:
        connection.close()
    return None if reply.status == HTTPStatus.OK else f"{url} answers {reply.status}: {text}"


def fault_of_file(path: Path | None, now: float | None = None) -> str | None:
    """Return why the process with this health file is not healthy, None if it is. `now`: seconds since the epoch."""
    if path is None:
        return "health_file is not set: set it for the process and for this command, as LAMPLIGHTER_HEALTH_FILE"
    try:
        age_s = (time.time() if now is None else now) - path.stat().st_mtime
    except OSError as error:
        return f"{path} cannot be read ({error.strerror}): the process has not connected yet, or names another file"
    if age_s > MAX_AGE_S:
        return f"{path} was last renewed {age_s:.0f} s ago: the process hangs or has lost its connection; read its log"
    return None
