"""Collect the evidence of a run for the checker, once nothing happens any more."""

from collections.abc import Iterable
from contextlib import suppress
from functools import partial

from bus.interface import Bus
from schemas.job import JobKey
from tests.chaos.evidence import Evidence, JobRevision
from tests.chaos.history import ObservationLog
from tests.chaos.leftovers import LEFTOVER_CHECKS, find_leftovers
from tests.chaos.run_stamps import STAMPS_NAME, read_runs
from tests.support.installation import Installation
from tests.support.wait import retry_bus_call, wait_for

LOOK_INTERVAL_S = 1.0


async def collect_evidence(
    installation: Installation,
    bus: Bus,
    history: ObservationLog,
    *,
    quiet_timeout_s: float,
    checks: Iterable[str] = LEFTOVER_CHECKS,
) -> Evidence:
    """Return everything there is to judge, once `checks` find nothing or `quiet_timeout_s` has passed."""
    found: list[str] = []

    async def is_quiet() -> bool:
        found[:] = await retry_bus_call(partial(find_leftovers, installation, bus, checks))
        return not found

    with suppress(TimeoutError):
        await wait_for(is_quiet, timeout_s=quiet_timeout_s, interval_s=LOOK_INTERVAL_S)
    keys = await retry_bus_call(bus.job_store.keys)
    runs = [read_runs(host, installation.folder / host / STAMPS_NAME) for host in installation.runners]
    return Evidence(
        seen=tuple(history.seen),
        state={key.id: await read_revisions(bus, key) for key in keys},
        runs=tuple(run for of_host in runs for run in of_host),
        cuts=tuple(history.cuts),
        left=tuple(found),
    )


async def read_revisions(bus: Bus, key: JobKey) -> tuple[JobRevision, ...]:
    """Return the job's history in STATE."""
    entries = await retry_bus_call(partial(bus.job_store.history, key))
    return tuple(map(JobRevision.of, entries))
