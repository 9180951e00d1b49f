"""`lamplighter relay`."""

import os
import sys
from pathlib import Path

import anyio
import click
import httpx
import uvloop

from edge.power.drivers.build import DriverMissing, Means, build
from edge.services.clock import utc_now
from lamplighter.cli.processes import config_option, format_option, level_option, one_line, read_settings
from lamplighter.cli.relaying import RelaySettings, Switch, Unwelcome, keep
from lamplighter.cli.session import REFUSED, USAGE
from schemas.loopback import past_proxies


@click.command()
@config_option
@level_option
@format_option
def relay(config: Path, log_level: str | None, log_format: str | None) -> None:
    """Switch the hosts of this network when an edge asks."""
    settings = read_settings(RelaySettings, config, log_level, log_format)
    if not settings.relay.urls or not settings.relay.key or not settings.hosts:
        click.echo("lamplighter: a relay needs urls and key under [relay], and [hosts.NAME] with a driver", err=True)
        sys.exit(USAGE)
    with one_line({Unwelcome: REFUSED, DriverMissing: USAGE}):
        uvloop.run(_run(settings))


async def _run(settings: RelaySettings) -> None:
    async with httpx.AsyncClient(mounts=past_proxies()) as client, anyio.create_task_group() as tasks:
        means = Means(client=client, environ=os.environ, now=utc_now, fresh_id=lambda: os.urandom(8).hex())
        drivers = build(settings.hosts, means)
        switches = {host: Switch(driver, settings.hosts[host].timeout) for host, driver in drivers.items()}
        for url in settings.relay.urls:
            tasks.start_soon(keep, url, settings.relay.key, switches)
