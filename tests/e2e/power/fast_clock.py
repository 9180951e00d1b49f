"""`lamplighter` with shorter intervals: heartbeats, the gone rule and power pauses take seconds, not minutes.

Only constants differ; the program itself runs. Modules copy these constants when they are imported, so they are changed
before anything else is imported. Only an edge imports the edge: a runner would start more slowly.

The limits of a boot and of a stop are long, because a machine under load is slow. While the file HURRY is in the data
of the edge, the first boot and a stop are overdue after a second: a test creates it when it wants one to be overdue.
"""

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from schemas import host
from tests.e2e.power.host_program import HURRY

if TYPE_CHECKING:
    from edge.power.conditions import Condition, PowerCase

HURRIED_S = 1.0


def hurry(condition: "Condition", file: Path) -> "Condition":
    """Return the condition with the limits of HURRY while the file exists."""

    def judge(case: "PowerCase") -> bool:
        if not file.exists() or case.record.failed_boots:
            return condition(case)
        rules = replace(case.rules, boot_timeout=HURRIED_S, stop_timeout=HURRIED_S)
        return condition(case._replace(rules=rules))

    return judge


host.HEARTBEAT_TTL_S, host.HEARTBEAT_INTERVAL_S, host.HOST_GONE_TIMEOUT_S = 5.0, 0.5, 10.0

if sys.argv[1] == "edge":
    from edge.power import conditions

    hurry_file = Path(os.environ["LAMPLIGHTER_DATA"]) / HURRY
    conditions.is_boot_overdue = hurry(conditions.is_boot_overdue, hurry_file)  # type: ignore[assignment]
    conditions.is_stop_overdue = hurry(conditions.is_stop_overdue, hurry_file)  # type: ignore[assignment]

    from edge import domain
    from edge.power import state_machine
    from edge.power.drivers import kubernetes
    from schemas.backoff import Backoff

    conditions.CALL_ABANDONED_AFTER_S, conditions.DRAIN_SETTLE_S = 2.0, 2.0
    kubernetes.LOST_AFTER_S = 1.0
    state_machine.CALL_BACKOFF = Backoff(0.4, 600.0)
    domain.PowerDependencies = partial(domain.PowerDependencies, tick_interval_s=0.5, poll_interval_s=0.3)  # type: ignore[attr-defined, assignment]

from lamplighter.cli import main  # noqa: E402 - see above

if __name__ == "__main__":
    main()
