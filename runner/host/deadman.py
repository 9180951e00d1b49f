"""The host's own dead-man timer, opt-in: a machine that nobody can reach and that holds nothing switches itself off.

It is the last line. As long as edge and broker answer, the edge's power law decides; here nothing is judged but this
machine: no container of a job in any state, no output that is not safe, no message without its answer, nobody who
uses it, and no word of edge or broker for `after_s`.
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
from runner.host.power_commands import power_off
from runner.settings import DeadManSettings
from schemas.power import ForeignUse


class DeadManObservation(NamedTuple):
    """`heard`: edge and broker both answered. `bare`: nothing of any job is left. `used_by`: who but us is here."""

    is_connected: bool
    is_free_of_jobs: bool = False
    used_by: frozenset[ForeignUse] = frozenset()


def unneeded_since(since: float | None, look: DeadManObservation, rules: DeadManSettings, now: float) -> float | None:
    """Since when nobody can want this machine on, None while somebody may. Pure; monotonic seconds.

    One look in which anything speaks for it begins the count anew.
    """
    alone = not look.is_connected and look.is_free_of_jobs and look.used_by.isdisjoint(rules.keep_on_for)
    if not alone:
        return None
    return now if since is None else since


def is_due(since: float | None, rules: DeadManSettings, now: float) -> bool:
    """Whether the machine is to go dark."""
    return rules.after_s is not None and since is not None and now - since >= rules.after_s


class DeadManTimer:
    """`answers` asks the edge for a sign of life."""

    def __init__(
        self,
        life: RunnerContext,
        rules: DeadManSettings,
        idleness: HostActivity,
        answers: Callable[[], Awaitable[bool]],
    ) -> None:
        self._context = life
        self._settings = rules
        self._activity = idleness
        self._is_edge_alive = answers

    async def run(self, poweroff: tuple[str, ...]) -> None:
        """Without end; at once over where it was not asked for. A program that fails is tried again `after_s` later."""
        since: float | None = None
        while self._settings.after_s is not None:
            since = unneeded_since(since, await self.observe(), self._settings, anyio.current_time())
            if is_due(since, self._settings, anyio.current_time()):
                self._context.log.warning("dead_man", program=poweroff[0], silent_s=self._settings.after_s)
                await power_off(poweroff, self._context.log)
                since = None
            await anyio.sleep(self._context.intervals.presence_s)

    async def observe(self) -> DeadManObservation:
        """One look; what cannot be found out speaks for staying on."""
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
            self._context.log.info("dead_man_unsure", why=str(error))
            return DeadManObservation(is_connected=False)

    async def _is_broker_alive(self) -> bool:
        try:
            await self._context.bus.power_records.get(self._context.host)
        except BusError:
            return False
        return True


async def is_free_of_jobs(life: RunnerContext) -> bool:
    """Whether neither a job's container, in any state, nor its folder is on this machine. Raises EngineError.

    Containers that wait for a job, or try a card, hold nothing of anybody's.
    """
    there = await life.engine.find(life.installation, life.host)

    def nothing() -> bool:
        containers = any(found.identity.job != NO_JOB for found in resolve_claimed(life.jobs_dir, there))
        return not containers and not any(parse_container_folder(folder) for folder in container_folders(life.jobs_dir))

    return await anyio.to_thread.run_sync(nothing)
