"""Dead-man timer, opt-in: an unreachable machine that holds nothing of any job powers itself off.

It is the last resort: while edge and broker answer, the edge decides. The timer looks only at this machine. It is due
if all of this holds for `after_s`: edge or broker are silent, no container of a job exists in any state, no output
waits for its upload, no message is unanswered, and no one uses the machine.
"""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import anyio
import anyio.to_thread

from bus.interface import BusError
from runner.claiming.recovery import container_folders, parse_container_folder, resolve_claimed
from runner.context import RunnerContext
from runner.engines.port import NO_JOB, EngineError
from runner.host.heartbeat import HostActivity
from runner.host.orders import power_off
from runner.settings import DeadManSettings
from schemas.power import ForeignUse


class DeadManObservation(NamedTuple):
    """One observation. `is_connected`: edge and broker both answer. `used_by`: other uses of this machine."""

    is_connected: bool
    is_free_of_jobs: bool = False
    used_by: frozenset[ForeignUse] = frozenset()


def unneeded_since(
    since: float | None, observation: DeadManObservation, settings: DeadManSettings, now: float
) -> float | None:
    """Return since when this machine is not needed, None if it may be needed. Pure; monotonic seconds.

    One observation that somebody needs it restarts the count.
    """
    is_unneeded = (
        not observation.is_connected
        and observation.is_free_of_jobs
        and observation.used_by.isdisjoint(settings.keep_on_for)
    )
    if not is_unneeded:
        return None
    return now if since is None else since


def is_due(since: float | None, settings: DeadManSettings, now: float) -> bool:
    """Return whether the machine is to power off."""
    return settings.after_s is not None and since is not None and now - since >= settings.after_s


class DeadManTimer:
    """Powers the machine off after silence. `is_edge_alive` asks the edge for a sign of life."""

    def __init__(
        self,
        context: RunnerContext,
        settings: DeadManSettings,
        activity: HostActivity,
        is_edge_alive: Callable[[], Awaitable[bool]],
    ) -> None:
        self._context = context
        self._settings = settings
        self._activity = activity
        self._is_edge_alive = is_edge_alive

    async def run(self, poweroff: tuple[str, ...]) -> None:
        """Run forever; return at once if the timer is off. A program that fails is tried again `after_s` later."""
        since: float | None = None
        while self._settings.after_s is not None:
            since = unneeded_since(since, await self.observe(), self._settings, anyio.current_time())
            if is_due(since, self._settings, anyio.current_time()):
                self._context.log.warning("dead_man_fired", program=poweroff[0], silent_s=self._settings.after_s)
                await power_off(poweroff, self._context.log)
                since = None
            await anyio.sleep(self._context.intervals.presence_s)

    async def observe(self) -> DeadManObservation:
        """Observe once; what cannot be found out counts as a need for the machine."""
        if await self._is_broker_alive() and await self._is_edge_alive():
            return DeadManObservation(is_connected=True)
        if not self._activity.is_empty():
            return DeadManObservation(is_connected=False)
        used_by = (await self._activity.measure()).foreign_uses
        try:
            return DeadManObservation(
                is_connected=False, is_free_of_jobs=await is_free_of_jobs(self._context), used_by=used_by
            )
        except EngineError as error:
            self._context.log.info("dead_man_check_failed", error=str(error))
            return DeadManObservation(is_connected=False)

    async def _is_broker_alive(self) -> bool:
        try:
            await self._context.bus.power_records.get(self._context.host)
        except BusError:
            return False
        return True


async def is_free_of_jobs(context: RunnerContext) -> bool:
    """Return whether neither a container of a job, in any state, nor its folder is on this machine. Raises EngineError.

    Warm containers and GPU probes hold nothing of a job.
    """
    containers = await context.engine.find(context.installation, context.host)

    def has_nothing() -> bool:
        resolved = resolve_claimed(context.jobs_dir, containers)
        has_folder = any(parse_container_folder(folder) for folder in container_folders(context.jobs_dir))
        return not has_folder and all(found.identity.job == NO_JOB for found in resolved)

    return await anyio.to_thread.run_sync(has_nothing)
