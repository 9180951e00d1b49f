"""Build the power driver of each declared host."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import httpx2
from msgspec import Struct

from edge.power.drivers.command import CommandDriver
from edge.power.drivers.http import HttpDriver
from edge.power.drivers.installed import DriverUnusable, build_installed_driver
from edge.power.drivers.kubernetes import KubernetesDriver
from edge.power.drivers.relay import PowerRelay, RelayDriver, RelayUnavailable
from edge.power.drivers.wol import WolDriver
from schemas.host_config import (
    AnyHostConfig,
    CommandHostConfig,
    HostConfig,
    HttpHostConfig,
    KubernetesHostConfig,
    LibcloudHostConfig,
    ModuleHostConfig,
    RelayHostConfig,
    WolHostConfig,
)
from schemas.power_driver import PowerDriver, PowerDriverReply
from schemas.version import import_extra


class UnconnectedRelay(PowerRelay):
    """A relay port without connected relays."""

    async def request(self, kind: str, host: str, call_id: str) -> PowerDriverReply:
        raise RelayUnavailable


class DriverDependencies(Struct, frozen=True, kw_only=True):
    """Clients, clocks and settings for drivers. `client`: the caller closes it. `new_id`: returns a new token."""

    client: httpx2.AsyncClient
    environ: Mapping[str, str]
    now: Callable[[], datetime]
    new_id: Callable[[], str]
    relay: PowerRelay = UnconnectedRelay()


def _build_command(host: str, declared: CommandHostConfig, dependencies: DriverDependencies) -> PowerDriver:
    return CommandDriver(host, declared, dependencies.environ)


def _build_http(host: str, declared: HttpHostConfig, dependencies: DriverDependencies) -> PowerDriver:
    return HttpDriver(host, declared, dependencies.client, dependencies.now, dependencies.new_id)


def _build_wol(_host: str, declared: WolHostConfig, _dependencies: DriverDependencies) -> PowerDriver:
    return WolDriver(declared)


def _build_libcloud(_host: str, declared: LibcloudHostConfig, dependencies: DriverDependencies) -> PowerDriver:
    module = import_extra(f"{__package__}.libcloud", "libcloud", "driver libcloud", DriverUnusable)
    driver: PowerDriver = module.LibcloudDriver(declared, dependencies.environ)
    return driver


def _build_module(host: str, declared: ModuleHostConfig, dependencies: DriverDependencies) -> PowerDriver:
    environ = {name: value for name, value in dependencies.environ.items() if name in declared.inherit}
    return build_installed_driver(host, declared, environ)


def _build_kubernetes(host: str, declared: KubernetesHostConfig, dependencies: DriverDependencies) -> PowerDriver:
    return KubernetesDriver(host, declared, dependencies.environ, dependencies.now)


def _build_relay(host: str, declared: RelayHostConfig, dependencies: DriverDependencies) -> PowerDriver:
    return RelayDriver(dependencies.relay, declared.name or host, wake_only=declared.wake_only)


DRIVER_FACTORIES: Mapping[type[HostConfig], Callable[[str, Any, DriverDependencies], PowerDriver]] = {
    CommandHostConfig: _build_command,
    HttpHostConfig: _build_http,
    WolHostConfig: _build_wol,
    LibcloudHostConfig: _build_libcloud,
    ModuleHostConfig: _build_module,
    KubernetesHostConfig: _build_kubernetes,
    RelayHostConfig: _build_relay,
}


def build_drivers(hosts: Mapping[str, AnyHostConfig], dependencies: DriverDependencies) -> dict[str, PowerDriver]:
    """Return a driver for each declared host. Raises DriverUnusable."""
    return {host: DRIVER_FACTORIES[type(declared)](host, declared, dependencies) for host, declared in hosts.items()}
