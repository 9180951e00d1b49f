"""Power drivers in packages of others, found by an entry point or by the name of their class."""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from schemas.host_config import ModuleHostConfig
from schemas.power_driver import PowerDriver

ENTRY_POINT_GROUP = "lamplighter.power_drivers"
PORT = ("can_report_state", "start", "stop", "state")


class DriverUnusable(RuntimeError):
    """The driver of a host cannot be built; the message says what to do."""


def build_installed_driver(host: str, declared: ModuleHostConfig, environ: Mapping[str, str]) -> PowerDriver:
    """Return the driver of a host. Raises DriverUnusable, which names the host and what its module says."""
    setting = f"hosts.{host}.module"
    found = _find(declared.module, setting)
    try:
        driver: Any = found.load()(host, dict(declared.options), environ)
    except Exception as error:  # a module of others may raise anything when it is imported or called
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DriverUnusable(
            f"{setting}: {found.value} cannot be used ({reason}): correct it or its options"
        ) from error
    missing = [name for name in PORT if not hasattr(driver, name)]
    if missing:
        raise DriverUnusable(
            f"{setting}: {found.value} is not a power driver, it has no {', '.join(missing)}: correct `module`"
        )
    checked: PowerDriver = driver
    return checked


def _find(module: str, setting: str) -> EntryPoint:
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
