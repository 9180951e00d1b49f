"""`lamplighter relay`: switch the hosts of this network when an edge asks."""

import os
import signal
import sys
from pathlib import Path

import anyio
import click
import httpx2
import uvloop

from edge.core.clock import utc_now
from edge.power.drivers.factory import DriverDependencies, build_drivers
from edge.power.drivers.installed import DriverUnusable
from lamplighter.cli.context import REFUSED, USAGE
from lamplighter.cli.process_setup import exit_on_error, format_option, level_option, read_settings
from lamplighter.cli.relay_client import RelayedHost, RelayKeyRejected, RelaySettings, serve_edge
from lamplighter.cli.service_notify import ServiceNotifier
from lamplighter.cli.settings_file import config_option
from runner.host.health_file import HealthFile
from schemas.environment import bypass_proxies_for_loopback

STOP_TIMEOUT_S = 10.0  # a call to a driver in progress is cancelled


@click.command()
@config_option
@level_option
@format_option
def relay(config: Path, log_level: str | None, log_format: str | None) -> None:
    """Switch the power of this network's hosts when an edge asks."""
    notifier = ServiceNotifier.from_environment(os.environ)
    settings = read_settings(RelaySettings, config, log_level, log_format)
    if not settings.relay.urls or not settings.relay.key or not settings.hosts:
        click.echo("lamplighter: a relay needs urls and key under [relay], and [hosts.NAME] with a driver", err=True)
        sys.exit(USAGE)
    with exit_on_error({RelayKeyRejected: REFUSED, DriverUnusable: USAGE}):
        uvloop.run(_run(settings, notifier))


async def _run(settings: RelaySettings, notifier: ServiceNotifier) -> None:
    """Serve all edges until SIGTERM or SIGINT. The relay is ready when the first edge has accepted it."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with (
            notifier.pinging(),
            httpx2.AsyncClient(mounts=bypass_proxies_for_loopback()) as client,
            anyio.create_task_group() as tasks,
        ):
            dependencies = DriverDependencies(
                client=client, environ=os.environ, now=utc_now, new_id=lambda: os.urandom(8).hex()
            )
            drivers = build_drivers(settings.hosts, dependencies)
            relayed = {host: RelayedHost(driver, settings.hosts[host].timeout) for host, driver in drivers.items()}
            health = HealthFile(settings.health_file)
            for url in settings.relay.urls:
                tasks.start_soon(serve_edge, url, settings.relay.key, relayed, notifier.ready, health)
            await anext(signals)
            notifier.stopping(STOP_TIMEOUT_S)
            tasks.cancel_scope.cancel()
