"""`lamplighter runner` with fault points at its ports and a stamp file for every container."""

from typing import Any

import runner.app
from lamplighter.cli import main
from runner.context import RunnerContext
from tests.chaos.armed_ports import ENGINE, SOURCE, SUPPLIES, VOLUMES, arm_bus
from tests.chaos.fault_points import FaultPoints
from tests.chaos.run_stamps import STAMPS_NAME, start_with_stamps

FAULTS = FaultPoints.of_this_process()
LIVE = runner.app.run_lifecycle  # type: ignore[attr-defined]


async def live(life: RunnerContext, *rest: Any) -> None:
    """Run the runner with fault points around its ports."""
    arm_bus(life.bus, FAULTS)
    vars(life.engine)["start"] = start_with_stamps(life.engine.start, life.jobs_dir.with_name(STAMPS_NAME))
    FAULTS.over(life.engine, "engine", ENGINE)
    FAULTS.over(life.assets, "supplies", SUPPLIES)
    if life.folders is not None:
        FAULTS.over(life.folders.source, "source", SOURCE)
        FAULTS.over_blocking(life.folders.volumes, "volumes", VOLUMES)
    await LIVE(life, *rest)


if __name__ == "__main__":
    runner.app.run_lifecycle = live  # type: ignore[attr-defined, assignment]
    main()
