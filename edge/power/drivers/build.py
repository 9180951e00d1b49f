"""From a declaration to its driver: one table."""

import importlib
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import httpx
from msgspec import Struct

from edge.power.drivers.command import CommandDriver
from edge.power.drivers.http import HttpDriver
from edge.power.drivers.port import Driver
from edge.power.drivers.relay import Relay, RelayAway, RelayDriver
from edge.power.drivers.reply import SwitchReply
from edge.power.drivers.wol import WolDriver
from schemas.switch import CommandHost, HostDeclaration, HttpHost, LibcloudHost, RelayHost, Switched, WolHost


class DriverMissing(RuntimeError):
    """A declared driver needs a package that is not installed; the message says which."""


class NoRelay(Relay):
    """A gateway that nobody is connected to."""

    async def ask(self, kind: str, host: str, call_id: str) -> SwitchReply:
        raise RelayAway


class Means(Struct, frozen=True, kw_only=True):
    """What drivers work with. `client` belongs to the caller; `fresh_id` gives a new token."""

    client: httpx.AsyncClient
    environ: Mapping[str, str]
    now: Callable[[], datetime]
    fresh_id: Callable[[], str]
    relay: Relay = NoRelay()


def _libcloud(_: str, declared: LibcloudHost, means: Means) -> Driver:
    try:
        module = importlib.import_module("edge.power.drivers.libcloud")
    except ModuleNotFoundError as error:
        raise DriverMissing(f"driver libcloud needs {error.name}: install lamplighter[libcloud]") from error
    made: Driver = module.LibcloudDriver(declared, means.environ)
    return made


BUILDERS: Mapping[type[Switched], Callable[[str, Any, Means], Driver]] = {
    CommandHost: lambda host, declared, means: CommandDriver(host, declared, means.environ),
    HttpHost: lambda host, declared, means: HttpDriver(host, declared, means.client, means.now, means.fresh_id),
    WolHost: lambda _host, declared, _means: WolDriver(declared),
    LibcloudHost: _libcloud,
    RelayHost: lambda host, declared, means: RelayDriver(means.relay, declared.name or host),
}


def build(hosts: Mapping[str, HostDeclaration], means: Means) -> dict[str, Driver]:
    """A driver for each declared host. Raises DriverMissing."""
    return {host: BUILDERS[type(declared)](host, declared, means) for host, declared in hosts.items()}
