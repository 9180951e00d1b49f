"""One life from its first look around to its drain: the parts of a runner, put together and kept going."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import anyio
from anyio.abc import TaskGroup

from bus.interface import BusError
from runner.claiming.loop import ClaimLoop
from runner.claiming.recovery import ContainerRecovery
from runner.claiming.schedulability import Schedulability
from runner.claiming.warm_pool import WarmPool
from runner.context import DropAssets, HostContext, RunnerContext
from runner.execution.execution import Execution, ExecutionRegistry
from runner.execution.verdict import StopReason
from runner.host.deadman import DeadManTimer
from runner.host.engine_monitor import EngineMonitor
from runner.host.gpu_probe import GpuProber
from runner.host.heartbeat import HeartbeatPublisher, HostActivity
from runner.host.power_commands import PowerCommands

ENGINE_AWAY_SETTLE_TIMEOUT_S = 2.0


async def run_lifecycle(life: RunnerContext, means: HostContext, stop: anyio.Event, ready: Callable[[], None]) -> None:
    """Adopt, then claim and run until `stop`, then drain. `ready` is called when work is taken."""
    readiness = Schedulability(means.endpoints, means.gpu_allocator, life.jobs_dir, life.intervals.image_missing_s)
    async with anyio.create_task_group() as background, anyio.create_task_group() as jobs:
        standby = WarmPool(life, means, readiness)
        roster = ExecutionRegistry(life, jobs, partial(_on_execution_ended, readiness, standby))
        adopter = ContainerRecovery(life, means, roster)
        agent = ClaimLoop(life, means, readiness, standby, adopter)
        idleness = HostActivity(means.slots, means.gpu_allocator, means.find_logged_in_users, roster)
        engine = EngineMonitor(life, readiness, partial(means.detect_injection, life, means))
        announcer = HeartbeatPublisher(life, means, readiness, standby, idleness, engine)
        background.start_soon(means.gpu_allocator.run)
        orders = PowerCommands(life, readiness, announcer.publish_now)
        await engine.probe_once()
        background.start_soon(engine.run, announcer.publish_now)
        background.start_soon(announcer.run)
        background.start_soon(orders.run, idleness.is_empty, means.poweroff)
        background.start_soon(DeadManTimer(life, means.dead_man, idleness, means.is_edge_alive).run, means.poweroff)
        background.start_soon(_follow_nudges, life, roster)
        prover = GpuProber(life, means)
        await orders.apply()
        begun = partial(_start_background, background, (standby, prover), idleness, ready)
        jobs.start_soon(_run_once_engine_ready, engine, partial(_recover_and_claim, life, means, adopter, agent, begun))
        await stop.wait()
        life.log.info("draining", running=len(roster.active))
        agent.stop()
        announcer.is_draining = True
        announcer.publish_now()
        # An engine that is away stops and removes nothing: the next life finds what is left.
        settle_s = (
            means.settle_s if readiness.engine_away is None else min(means.settle_s, ENGINE_AWAY_SETTLE_TIMEOUT_S)
        )
        with anyio.move_on_after(settle_s):
            await standby.close()
        await drain(roster, grace_s=means.grace_s, settle_s=settle_s, leave=means.containers_outlive_runner)
        left = len(roster.active)
        jobs.cancel_scope.cancel()
        background.cancel_scope.cancel()
    life.log.info("stopped", left=left)
    if not left and idleness.is_recovered:
        with suppress(BusError), anyio.move_on_after(life.intervals.retry_most_s):
            await announcer.delete_heartbeat()


def _start_background(
    background: TaskGroup, starters: tuple[WarmPool, GpuProber], idleness: HostActivity, ready: Callable[[], None]
) -> None:
    """What earlier lives left is dealt with: only now may anything that is no job's be started beside it."""
    idleness.is_recovered = True
    for starter in starters:
        background.start_soon(starter.run)
    ready()


def _on_execution_ended(readiness: Schedulability, standby: WarmPool, execution: Execution) -> None:
    readiness.learn_from(execution)
    standby.notify()


async def _run_once_engine_ready(engine: EngineMonitor, work: Callable[[], Awaitable[None]]) -> None:
    """Nobody knows what earlier lives left here, nor can anything be started, before the engine has answered."""
    await engine.wait_until_ready()
    await work()


async def _recover_and_claim(
    life: RunnerContext, means: HostContext, adopter: ContainerRecovery, agent: ClaimLoop, ready: Callable[[], None]
) -> None:
    await adopter.recover_all()
    await life.retry_while_unavailable("tombstones", partial(_drop_deleted_assets, life, means.drop_assets))
    ready()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_run_periodic_cleanup, life, means, adopter)
        await agent.run()
        tasks.cancel_scope.cancel()


async def _run_periodic_cleanup(life: RunnerContext, means: HostContext, adopter: ContainerRecovery) -> None:
    """What nothing tells us of: slots that a dead task left, and assets that were deleted meanwhile."""
    while True:
        await anyio.sleep(life.intervals.sweep_s)
        with suppress(BusError):
            await adopter.recover_poisoned_slots()
            await _drop_deleted_assets(life, means.drop_assets)


async def _drop_deleted_assets(life: RunnerContext, forget: DropAssets) -> None:
    await forget(sorted(await life.bus.tombstones.keys()))


async def _follow_nudges(life: RunnerContext, roster: ExecutionRegistry) -> None:
    """Nudges: somebody has changed a record that an execution here goes by."""
    async for key in life.bus.host_nudges.subscribe(life.host):
        for place, execution in roster.active.items():
            if place.key == key:
                execution.check_now()


# MERGED runner/drain.py: Going down in two scopes: first nothing new, then, when the grace is over, nothing at all. /
# What an engine keeps running without us is left for the next life to adopt; what would end with us, or has not
# begun, is / stopped and given back, at no cost to the job.


async def drain(roster: ExecutionRegistry, *, grace_s: float, settle_s: float, leave: bool) -> None:
    """Wait `grace_s` for the jobs to end; stop those that cannot be left, and wait `settle_s` for their records."""
    with anyio.move_on_after(grace_s):
        await roster.wait_until(lambda there: not there)
    stopped = {place for place, execution in roster.active.items() if not leave or execution.handle is None}
    for place in stopped:
        if (execution := roster.active.get(place)) is not None:
            await execution.stop(StopReason.DRAIN)
    with anyio.move_on_after(settle_s):
        await roster.wait_until(stopped.isdisjoint)
