"""`lamplighter edge` as it is, with fault points at its ports. Started by tests/chaos/scene.py, never by hand."""

from typing import Any

import edge.assembly
import edge.serve
from edge.power.drivers import build
from lamplighter.cli import main
from tests.chaos.faults import Faults
from tests.chaos.ports import DRIVER, STORE, arm_bus

FAULTS = Faults.of_this_process()
ASSEMBLE = edge.serve.assemble
BUILD = build.build


async def assembled(settings: Any, bus: Any, store: Any, *rest: Any) -> Any:
    """The composition root's own step, over armed ports."""
    arm_bus(bus, FAULTS)
    FAULTS.over(store, "store", STORE)
    return await ASSEMBLE(settings, bus, store, *rest)


def built(*given: Any, **named: Any) -> Any:
    """The switches of the declared hosts, armed."""
    drivers = BUILD(*given, **named)
    for driver in drivers.values():
        FAULTS.over(driver, "driver", DRIVER)
    return drivers


if __name__ == "__main__":
    edge.serve.assemble = assembled
    build.build = built
    main()
