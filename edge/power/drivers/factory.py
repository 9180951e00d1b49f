"""From a declaration to its driver: one table."""

import importlib
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import httpx
from msgspec import Struct

from edge.power.drivers.command import CommandDriver
from edge.power.drivers.http import HttpDriver
from edge.power.drivers.port import PowerDriver, PowerDriverReply
from edge.power.drivers.relay import PowerRelay, RelayDriver, RelayUnavailable
from edge.power.drivers.wol import WolDriver
from schemas.host_config import (
    AnyHostConfig,
    CommandHostConfig,
    HostConfig,
    HttpHostConfig,
    LibcloudHostConfig,
    RelayHostConfig,
    WolHostConfig,
)


class DriverPackageMissing(RuntimeError):
    """A declared driver needs a package that is not installed; the message says which."""


class UnconnectedRelay(PowerRelay):
    """A gateway that nobody is connected to."""

    async def request(self, kind: str, host: str, call_id: str) -> PowerDriverReply:
        raise RelayUnavailable


class DriverDependencies(Struct, frozen=True, kw_only=True):
    """What drivers work with. `client` belongs to the caller; `fresh_id` gives a new token."""

    client: httpx.AsyncClient
    environ: Mapping[str, str]
    now: Callable[[], datetime]
    new_id: Callable[[], str]
    relay: PowerRelay = UnconnectedRelay()


def _build_libcloud(_: str, declared: LibcloudHostConfig, means: DriverDependencies) -> PowerDriver:
    try:
        module = importlib.import_module("edge.power.drivers.libcloud")
    except ModuleNotFoundError as error:
        raise DriverPackageMissing(f"driver libcloud needs {error.name}: install lamplighter[libcloud]") from error
    made: PowerDriver = module.LibcloudDriver(declared, means.environ)
    return made


DRIVER_FACTORIES: Mapping[type[HostConfig], Callable[[str, Any, DriverDependencies], PowerDriver]] = {
    CommandHostConfig: lambda host, declared, means: CommandDriver(host, declared, means.environ),
    HttpHostConfig: lambda host, declared, means: HttpDriver(host, declared, means.client, means.now, means.new_id),
    WolHostConfig: lambda _host, declared, _means: WolDriver(declared),
    LibcloudHostConfig: _build_libcloud,
    RelayHostConfig: lambda host, declared, means: RelayDriver(means.relay, declared.name or host),
}


def build_drivers(hosts: Mapping[str, AnyHostConfig], means: DriverDependencies) -> dict[str, PowerDriver]:
    """A driver for each declared host. Raises DriverMissing."""
    return {host: DRIVER_FACTORIES[type(declared)](host, declared, means) for host, declared in hosts.items()}
