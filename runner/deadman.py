"""The host's own dead-man timer, opt-in: a machine that nobody can reach and that holds nothing switches itself off.

It is the last line. As long as edge and broker answer, the edge's power law decides; here nothing is judged but this
machine: no container of a job in any state, no output that is not safe, no message without its answer, nobody who
uses it, and no word of edge or broker for `after_s`.
"""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import anyio
import anyio.to_thread

from bus.port import BusError
from runner.adopt import attempt_of, claimed, folders
from runner.engines.port import NO_JOB, EngineError
from runner.idleness import Idleness
from runner.life import Life
from runner.poweroff import power_off
from runner.settings import DeadManSettings
from schemas.power import UsedBy


class Look(NamedTuple):
    """`heard`: edge and broker both answered. `bare`: nothing of any job is left. `used_by`: who but us is here."""

    heard: bool
    bare: bool = False
    used_by: frozenset[UsedBy] = frozenset()


def alone_since(since: float | None, look: Look, rules: DeadManSettings, now: float) -> float | None:
    """Since when nobody can want this machine on, None while somebody may. Pure; monotonic seconds.

    One look in which anything speaks for it begins the count anew.
    """
    alone = not look.heard and look.bare and look.used_by.isdisjoint(rules.stays_for)
    if not alone:
        return None
    return now if since is None else since


def due(since: float | None, rules: DeadManSettings, now: float) -> bool:
    """Whether the machine is to go dark."""
    return rules.after_s is not None and since is not None and now - since >= rules.after_s


class DeadMan:
    """`answers` asks the edge for a sign of life."""

    def __init__(
        self, life: Life, rules: DeadManSettings, idleness: Idleness, answers: Callable[[], Awaitable[bool]]
    ) -> None:
        self._life = life
        self._rules = rules
        self._idleness = idleness
        self._answers = answers

    async def run(self, poweroff: tuple[str, ...]) -> None:
        """Without end; at once over where it was not asked for. A program that fails is tried again `after_s` later."""
        since: float | None = None
        while self._rules.after_s is not None:
            since = alone_since(since, await self.look(), self._rules, anyio.current_time())
            if due(since, self._rules, anyio.current_time()):
                self._life.log.warning("dead_man", program=poweroff[0], silent_s=self._rules.after_s)
                await power_off(poweroff, self._life.log)
                since = None
            await anyio.sleep(self._life.pace.presence_s)

    async def look(self) -> Look:
        """One look; what cannot be found out speaks for staying on."""
        if await self._broker_answers() and await self._answers():
            return Look(heard=True)
        if not self._idleness.empty():
            return Look(heard=False)
        used_by = (await self._idleness.busy()).used_by
        try:
            return Look(heard=False, bare=await bare(self._life), used_by=used_by)
        except EngineError as error:
            self._life.log.info("dead_man_unsure", why=str(error))
            return Look(heard=False)

    async def _broker_answers(self) -> bool:
        try:
            await self._life.bus.power.get(self._life.host)
        except BusError:
            return False
        return True


async def bare(life: Life) -> bool:
    """Whether neither a job's container, in any state, nor its folder is on this machine. Raises EngineError.

    Containers that wait for a job, or try a card, hold nothing of anybody's.
    """
    there = await life.engine.find(life.installation, life.host)

    def nothing() -> bool:
        containers = any(found.identity.job != NO_JOB for found in claimed(life.jobs, there))
        return not containers and not any(attempt_of(folder) for folder in folders(life.jobs))

    return await anyio.to_thread.run_sync(nothing)
