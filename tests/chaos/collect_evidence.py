"""Collect the evidence of a run for the checker, once nothing happens any more."""

import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import TypeVar

import anyio

from bus.interface import Bus, BusError
from schemas.job import JobKey
from tests.chaos.evidence import Evidence, JobRevision
from tests.chaos.history import ObservationLog
from tests.chaos.leftovers import LEFTOVER_CHECKS, find_leftovers
from tests.chaos.run_stamps import STAMPS_NAME, read_runs
from tests.support.installation import Installation
from tests.support.wait import wait_for

T = TypeVar("T")

BUS_TIMEOUT_S = 60.0
RETRY_DELAY_S = 0.05
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


async def retry_bus_call(call: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `call`, repeated while the broker fails: it may have been killed a moment ago.

    Raises the last BusError after BUS_TIMEOUT_S.
    """
    deadline = time.monotonic() + BUS_TIMEOUT_S
    while True:
        try:
            return await call()
        except BusError:
            if time.monotonic() > deadline:
                raise
        await anyio.sleep(RETRY_DELAY_S)
