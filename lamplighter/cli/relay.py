"""`lamplighter relay`: switch the hosts of this network when an edge asks."""

import os
import sys
from pathlib import Path

import anyio
import click
import httpx
import uvloop

from edge.core.clock import utc_now
from edge.power.drivers.factory import DriverDependencies, DriverPackageMissing, build_drivers
from lamplighter.cli.context import REFUSED, USAGE
from lamplighter.cli.process_setup import config_option, exit_on_error, format_option, level_option, read_settings
from lamplighter.cli.relay_client import RelayedHost, RelayKeyRejected, RelaySettings, serve_edge
from schemas.environment import bypass_proxies_for_loopback


@click.command()
@config_option
@level_option
@format_option
def relay(config: Path, log_level: str | None, log_format: str | None) -> None:
    """Switch the power of this network's hosts when an edge asks."""
    settings = read_settings(RelaySettings, config, log_level, log_format)
    if not settings.relay.urls or not settings.relay.key or not settings.hosts:
        click.echo("lamplighter: a relay needs urls and key under [relay], and [hosts.NAME] with a driver", err=True)
        sys.exit(USAGE)
    with exit_on_error({RelayKeyRejected: REFUSED, DriverPackageMissing: USAGE}):
        uvloop.run(_run(settings))


async def _run(settings: RelaySettings) -> None:
    async with httpx.AsyncClient(mounts=bypass_proxies_for_loopback()) as client, anyio.create_task_group() as tasks:
        dependencies = DriverDependencies(
            client=client, environ=os.environ, now=utc_now, new_id=lambda: os.urandom(8).hex()
        )
        drivers = build_drivers(settings.hosts, dependencies)
        relayed = {host: RelayedHost(driver, settings.hosts[host].timeout) for host, driver in drivers.items()}
        for url in settings.relay.urls:
            tasks.start_soon(serve_edge, url, settings.relay.key, relayed)
