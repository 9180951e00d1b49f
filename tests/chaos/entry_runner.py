"""`lamplighter runner` as it is, with fault points at its ports and a stamp file beside every container."""

from typing import Any

import runner.app
from lamplighter.cli import main
from runner.life import Life
from tests.chaos.faults import Faults
from tests.chaos.ports import ENGINE, SUPPLIES, arm_bus
from tests.chaos.stamps import NAME, stamping

FAULTS = Faults.of_this_process()
LIVE = runner.app.live


async def live(life: Life, *rest: Any) -> None:
    """A life over armed ports."""
    arm_bus(life.bus, FAULTS)
    vars(life.engine)["start"] = stamping(life.engine.start, life.jobs.with_name(NAME))
    FAULTS.over(life.engine, "engine", ENGINE)
    FAULTS.over(life.supplies, "supplies", SUPPLIES)
    await LIVE(life, *rest)


if __name__ == "__main__":
    runner.app.live = live
    main()
