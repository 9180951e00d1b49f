"""`lamplighter edge` with fault points at its ports.

tests/chaos/chaos_installation.py starts it; nobody starts it by hand.
"""

import os
from typing import Any

import edge.container
import edge.process
from edge.owners import secret_keys
from edge.power.drivers import factory
from lamplighter.cli import main
from tests.chaos.armed_ports import DISK, DRIVER, KEY_FILE, STORE, arm_bus
from tests.chaos.fault_points import FaultPoints

FAULTS = FaultPoints.of_this_process()
ASSEMBLE = edge.process.assemble_services  # type: ignore[attr-defined]
BUILD = factory.build_drivers


async def assembled(resources: Any) -> Any:
    """Assemble the services with fault points around their ports."""
    arm_bus(resources.bus, FAULTS)
    FAULTS.over(resources.store, "store", STORE)
    return await ASSEMBLE(resources)


def built(*given: Any, **named: Any) -> Any:
    """Build the power drivers of the declared hosts, with fault points."""
    drivers = BUILD(*given, **named)
    for driver in drivers.values():
        FAULTS.over(driver, "driver", DRIVER)
    return drivers


if __name__ == "__main__":
    edge.process.assemble_services = assembled  # type: ignore[attr-defined]
    factory.build_drivers = built
    FAULTS.over_blocking(secret_keys, "key_file", KEY_FILE)
    FAULTS.over_blocking(os, "disk", DISK)
    main()
