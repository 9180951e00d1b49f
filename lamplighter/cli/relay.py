"""`lamplighter relay`: switch the hosts of this network when an edge asks."""

import os
import signal
import sys
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import click
import httpx2
import uvloop

from edge.core.clock import utc_now
from edge.power.drivers.factory import DriverDependencies, DriverUnusable, build_drivers
from lamplighter.api import TrustInvalid
from lamplighter.cli.context import REFUSED, USAGE
from lamplighter.cli.join_token import join_option, read_token
from lamplighter.cli.language import say
from lamplighter.cli.process_setup import (
    ServiceNotifier,
    config_option,
    exit_on_error,
    format_option,
    level_option,
    read_settings,
)
from lamplighter.cli.relay_client import (
    RelayedHost,
    RelayEnrollmentUnreadable,
    RelayKeyRejected,
    RelaySettings,
    apply_relay_enrollment,
    join_relay,
    serve_edge,
)
from lamplighter.transport import make_ssl_context
from runner.host.health_file import HealthFile
from schemas.credentials import JoinTokenInvalid
from schemas.outbound_rules import bypass_proxies_for_loopback

STOP_TIMEOUT_S = 10.0  # a call to a driver in progress is cancelled


@click.command()
@config_option
@level_option
@format_option
@join_option
def relay(config: Path, log_level: str | None, log_format: str | None, token: str | None) -> None:
    """Power hosts of this network on and off when an edge asks."""
    notifier = ServiceNotifier.from_environment(os.environ)
    settings = read_settings(RelaySettings, config, log_level, log_format)
    with exit_on_error({JoinTokenInvalid: USAGE, RelayEnrollmentUnreadable: USAGE, OSError: USAGE}):
        if token is not None:
            join_relay(settings, read_token(token))
        settings = apply_relay_enrollment(settings)
    if not settings.relay.urls or not settings.relay.key or not settings.hosts:
        why = "a relay needs --join TOKEN, or urls and key under [relay]; and [hosts.NAME] with a driver"
        click.echo(f"lamplighter: {say(why)}", err=True)
        sys.exit(USAGE)
    with exit_on_error({RelayKeyRejected: REFUSED, DriverUnusable: USAGE, TrustInvalid: USAGE}):
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
            target = settings.relay
            for url in target.urls:
                tls = await anyio.to_thread.run_sync(make_ssl_context, url, target.ca, target.pin)
                serve = partial(serve_edge, url, target.key, relayed, notifier.ready, health, tls=tls)
                tasks.start_soon(serve)
            await anext(signals)
            notifier.stopping(STOP_TIMEOUT_S)
            tasks.cancel_scope.cancel()
