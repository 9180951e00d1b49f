"""One life from its first look around to its drain: the parts of a runner, put together and kept going."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import anyio
from anyio.abc import TaskGroup

from bus.port import BusError
from runner.adopt import Adopter
from runner.agent import Agent
from runner.deadman import DeadMan
from runner.drain import drain
from runner.enginewatch import EngineWatch
from runner.execution import Execution
from runner.idleness import Idleness
from runner.life import Life
from runner.means import Forget, Means
from runner.orders import Orders
from runner.presence import Announcer
from runner.proving import Prover
from runner.readiness import Readiness
from runner.roster import Roster
from runner.standby import Standby

AWAY_SETTLE_S = 2.0


async def live(life: Life, means: Means, stop: anyio.Event, ready: Callable[[], None]) -> None:
    """Adopt, then claim and run until `stop`, then drain. `ready` is called when work is taken."""
    readiness = Readiness(means.kinds, means.cards, life.jobs, life.pace.image_missing_s)
    async with anyio.create_task_group() as background, anyio.create_task_group() as jobs:
        standby = Standby(life, means, readiness)
        roster = Roster(life, jobs, partial(_ended, readiness, standby))
        adopter = Adopter(life, means, roster)
        agent = Agent(life, means, readiness, standby, adopter)
        idleness = Idleness(means.slots, means.cards, means.logins, roster)
        engine = EngineWatch(life, readiness, partial(means.try_injection, life, means))
        announcer = Announcer(life, means, readiness, standby, idleness, engine)
        background.start_soon(means.cards.watch)
        orders = Orders(life, readiness, announcer.hurry)
        await engine.begin()
        background.start_soon(engine.run, announcer.hurry)
        background.start_soon(announcer.run)
        background.start_soon(orders.run, idleness.empty, means.poweroff)
        background.start_soon(DeadMan(life, means.dead_man, idleness, means.answers).run, means.poweroff)
        background.start_soon(_listen, life, roster)
        prover = Prover(life, means)
        await orders.obey()
        begun = partial(_begun, background, (standby, prover), idleness, ready)
        jobs.start_soon(_once_answered, engine, partial(_work, life, means, adopter, agent, begun))
        await stop.wait()
        life.log.info("draining", running=len(roster.there))
        agent.stop()
        announcer.draining = True
        announcer.hurry()
        # An engine that is away stops and removes nothing: the next life finds what is left.
        settle_s = means.settle_s if readiness.engine_away is None else min(means.settle_s, AWAY_SETTLE_S)
        with anyio.move_on_after(settle_s):
            await standby.close()
        await drain(roster, grace_s=means.grace_s, settle_s=settle_s, leave=means.leave)
        left = len(roster.there)
        jobs.cancel_scope.cancel()
        background.cancel_scope.cancel()
    life.log.info("stopped", left=left)
    if not left and idleness.settled:
        with suppress(BusError), anyio.move_on_after(life.pace.retry_most_s):
            await announcer.leave()


def _begun(
    background: TaskGroup, starters: tuple[Standby, Prover], idleness: Idleness, ready: Callable[[], None]
) -> None:
    """What earlier lives left is dealt with: only now may anything that is no job's be started beside it."""
    idleness.settled = True
    for starter in starters:
        background.start_soon(starter.run)
    ready()


def _ended(readiness: Readiness, standby: Standby, execution: Execution) -> None:
    readiness.ended(execution)
    standby.look()


async def _once_answered(engine: EngineWatch, work: Callable[[], Awaitable[None]]) -> None:
    """Nobody knows what earlier lives left here, nor can anything be started, before the engine has answered."""
    await engine.answered()
    await work()


async def _work(life: Life, means: Means, adopter: Adopter, agent: Agent, ready: Callable[[], None]) -> None:
    await adopter.everything()
    await life.insist("tombstones", partial(_bury, life, means.forget))
    ready()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_sweep, life, means, adopter)
        await agent.run()
        tasks.cancel_scope.cancel()


async def _sweep(life: Life, means: Means, adopter: Adopter) -> None:
    """What nothing tells us of: slots that a dead task left, and assets that were deleted meanwhile."""
    while True:
        await anyio.sleep(life.pace.sweep_s)
        with suppress(BusError):
            await adopter.poisoned()
            await _bury(life, means.forget)


async def _bury(life: Life, forget: Forget) -> None:
    await forget(sorted(await life.bus.tombstones.keys()))


async def _listen(life: Life, roster: Roster) -> None:
    """Nudges: somebody has changed a record that an execution here goes by."""
    async for key in life.bus.control.nudges(life.host):
        for place, execution in roster.there.items():
            if place.key == key:
                execution.look()
