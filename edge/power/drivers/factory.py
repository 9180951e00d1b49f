"""Build the power driver of each declared host, also one from a package of others.

Such a driver is found by an entry point or by the name of its class.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import httpx2
from msgspec import Struct

from edge.power.drivers.generic import CommandDriver, HttpDriver, PowerRelay, RelayDriver, RelayUnavailable, WolDriver
from edge.power.drivers.kubernetes import KubernetesDriver
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
from schemas.power import PowerDriver, PowerDriverReply
from schemas.version import import_extra

ENTRY_POINT_GROUP = "lamplighter.power_drivers"
DRIVER_MEMBERS = ("can_report_state", "start", "stop", "state")


class DriverUnusable(RuntimeError):
    """The driver of a host cannot be built; the message says what to do."""


def build_installed_driver(host: str, declared: ModuleHostConfig, environ: Mapping[str, str]) -> PowerDriver:
    """Return the driver of a host. Raises DriverUnusable, which names the host and what its module says."""
    setting = f"hosts.{host}.module"
    found = _find_installed(declared.module, setting)
    try:
        driver: Any = found.load()(host, dict(declared.options), environ)
    except Exception as error:  # a module of others may raise anything when it is imported or called
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DriverUnusable(
            f"{setting}: {found.value} cannot be used ({reason}): correct it or its options"
        ) from error
    missing = [name for name in DRIVER_MEMBERS if not hasattr(driver, name)]
    if missing:
        raise DriverUnusable(
            f"{setting}: {found.value} is not a power driver, it has no {', '.join(missing)}: correct `module`"
        )
    checked: PowerDriver = driver
    return checked


def _find_installed(module: str, setting: str) -> EntryPoint:
    if ":" in module:
        return EntryPoint(name=module, value=module, group=ENTRY_POINT_GROUP)
    installed = entry_points(group=ENTRY_POINT_GROUP)
    if module not in installed.names:
        known = ", ".join(sorted(installed.names)) or "none"
        raise DriverUnusable(
            f"{setting}: no installed package has the power driver {module} (there are: {known}): "
            "install its package, or write package.module:Class"
        )
    return installed[module]


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
