"""`lamplighter health`: tell whether the edge, the runner or the relay of this machine works, as a container asks."""

import sys
from pathlib import Path

import click
import httpx2

from edge.settings import EdgeSettings
from lamplighter.cli.context import FAILED
from lamplighter.cli.language import say
from lamplighter.cli.process_setup import config_option, read_settings
from lamplighter.cli.relay import RelaySettings
from runner.host.health_file import fault_of
from runner.settings import RunnerSettings
from schemas.outbound_rules import bypass_proxies_for_loopback

TIMEOUT_S = 4.0
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - where a server that binds to all is reached


@click.command()
@click.argument("process", type=click.Choice(["edge", "runner", "relay"]))
@config_option
def health(process: str, config: Path) -> None:
    """Check whether the PROCESS with the same settings on this machine works. Exit code 0 if it does, else 1.

    The edge is asked for /readyz. Runner and relay renew the file that `health_file` names.
    """
    if process == "edge":
        fault = _fault_of_edge(read_settings(EdgeSettings, config, None, None))
    elif process == "runner":
        fault = fault_of(read_settings(RunnerSettings, config, None, None).health_file)
    else:
        fault = fault_of(read_settings(RelaySettings, config, None, None).health_file)
    if fault is not None:
        click.echo(f"lamplighter: {say(f'the {process} is not healthy: {fault}')}", err=True)
        sys.exit(FAILED)
    click.echo(say(f"the {process} is healthy"))


def _fault_of_edge(settings: EdgeSettings) -> str | None:
    """Return why the edge takes no jobs now, None if it does."""
    url = f"http://{ANY_ADDRESS.get(settings.bind, settings.bind)}:{settings.port}/readyz"
    try:
        with httpx2.Client(timeout=TIMEOUT_S, mounts=bypass_proxies_for_loopback(url)) as client:
            reply = client.get(url)
    except httpx2.HTTPError as error:
        return f"no answer from {url} ({error}): read its log"
    return None if reply.status_code == httpx2.codes.OK else f"{url} answers {reply.status_code}: {reply.text.strip()}"
