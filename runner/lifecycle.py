"""One runner process from its recovery to its drain: builds the parts and runs them."""

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
from runner.context import DropAssets, HostContext, RunnerContext, run_in_background
from runner.execution.execution import Execution, ExecutionRegistry
from runner.execution.verdict import StopReason
from runner.host.deadman import DeadManTimer
from runner.host.engine_monitor import EngineMonitor
from runner.host.gpu_probe import GpuProber, detect_injection
from runner.host.heartbeat import HeartbeatPublisher, HostActivity
from runner.host.power_commands import PowerCommands

ENGINE_AWAY_SETTLE_TIMEOUT_S = 2.0


async def run_lifecycle(
    context: RunnerContext, host: HostContext, stop: anyio.Event, ready: Callable[[], None]
) -> None:
    """Recover, then claim and run jobs until `stop`, then drain. `ready` is called when the runner begins to claim."""
    schedulability = Schedulability(
        host.endpoints, host.gpu_allocator, context.jobs_dir, context.intervals.image_missing_s
    )
    async with anyio.create_task_group() as background, anyio.create_task_group() as jobs:
        warm_pool = WarmPool(context, host, schedulability)
        executions = ExecutionRegistry(context, jobs, partial(_on_execution_ended, schedulability, warm_pool))
        recovery = ContainerRecovery(context, host, executions)
        claim_loop = ClaimLoop(context, host, schedulability, warm_pool, recovery)
        activity = HostActivity(host.slots, host.gpu_allocator, host.find_logged_in_users, executions)
        engine_monitor = EngineMonitor(context, schedulability, partial(detect_injection, context, host))
        heartbeat = HeartbeatPublisher(context, host, schedulability, warm_pool, activity, engine_monitor)
        background.start_soon(host.gpu_allocator.run)
        power_commands = PowerCommands(context, schedulability, heartbeat.publish_now)
        await engine_monitor.probe_once()
        background.start_soon(engine_monitor.run, heartbeat.publish_now)
        background.start_soon(heartbeat.run)
        background.start_soon(power_commands.run, activity.is_empty, host.poweroff)
        background.start_soon(DeadManTimer(context, host.dead_man, activity, host.is_edge_alive).run, host.poweroff)
        background.start_soon(_follow_nudges, context, executions)
        prober = GpuProber(context, host)
        await power_commands.apply()
        start_background = partial(_start_background, background, (warm_pool, prober), activity, ready)
        jobs.start_soon(
            _run_once_engine_ready,
            engine_monitor,
            partial(_recover_and_claim, context, host, recovery, claim_loop, start_background),
        )
        await stop.wait()
        context.log.info("drain_started", running=len(executions.active))
        claim_loop.stop()
        heartbeat.is_draining = True
        heartbeat.publish_now()
        # An engine that is away stops and removes nothing; recovery after the next start does.
        settle_s = (
            host.settle_s if schedulability.engine_away is None else min(host.settle_s, ENGINE_AWAY_SETTLE_TIMEOUT_S)
        )
        with anyio.move_on_after(settle_s):
            await warm_pool.close()
        await drain(
            executions,
            grace_s=host.grace_s,
            settle_s=settle_s,
            leave_containers=context.engine.containers_outlive_runner,
        )
        left_running = len(executions.active)
        jobs.cancel_scope.cancel()
        background.cancel_scope.cancel()
    context.log.info("runner_stopped", left_running=left_running)
    if not left_running and activity.is_recovered:
        with suppress(BusError), anyio.move_on_after(context.intervals.retry_most_s):
            await heartbeat.delete_heartbeat()


def _start_background(
    background: TaskGroup, services: tuple[WarmPool, GpuProber], activity: HostActivity, ready: Callable[[], None]
) -> None:
    """Start what may start containers without a job. It waits until recovery has dealt with the containers found."""
    activity.is_recovered = True
    for service in services:
        background.start_soon(service.run)
    ready()


def _on_execution_ended(schedulability: Schedulability, warm_pool: WarmPool, execution: Execution) -> None:
    schedulability.learn_from(execution)
    warm_pool.notify()


async def _run_once_engine_ready(engine_monitor: EngineMonitor, run: Callable[[], Awaitable[None]]) -> None:
    """Run once the engine has answered: before that, nothing can be started, and containers cannot be found."""
    await engine_monitor.wait_until_ready()
    await run()


async def _recover_and_claim(
    context: RunnerContext,
    host: HostContext,
    recovery: ContainerRecovery,
    claim_loop: ClaimLoop,
    ready: Callable[[], None],
) -> None:
    await recovery.recover_all()
    await context.retry_while_unavailable("tombstones", partial(_drop_deleted_assets, context, host.drop_assets))
    ready()
    async with run_in_background(partial(_run_periodic_cleanup, context, host, recovery)):
        await claim_loop.run()


async def _run_periodic_cleanup(context: RunnerContext, host: HostContext, recovery: ContainerRecovery) -> None:
    """Clean up periodically what no notification covers: poisoned slots and deleted assets."""
    while True:
        await anyio.sleep(context.intervals.sweep_s)
        with suppress(BusError):
            await recovery.recover_poisoned_slots()
            await _drop_deleted_assets(context, host.drop_assets)


async def _drop_deleted_assets(context: RunnerContext, drop_assets: DropAssets) -> None:
    await drop_assets(sorted(await context.bus.tombstones.keys()))


async def _follow_nudges(context: RunnerContext, executions: ExecutionRegistry) -> None:
    """Check an execution at once when a nudge says that its record has changed."""
    async for key in context.bus.host_nudges.subscribe(context.host):
        for round_key, execution in executions.active.items():
            if round_key.key == key:
                execution.check_now()


async def drain(executions: ExecutionRegistry, *, grace_s: float, settle_s: float, leave_containers: bool) -> None:
    """Wait `grace_s` for jobs to end, stop those that cannot be left, and wait `settle_s` for their records.

    `leave_containers`: running containers stay, and the next runner process adopts them. A job that would end with us,
    or that has no container yet, is stopped and released at no cost to the job.
    """
    with anyio.move_on_after(grace_s):
        await executions.wait_until(lambda active: not active)
    stopped = {
        round_key
        for round_key, execution in executions.active.items()
        if not leave_containers or execution.handle is None
    }
    for round_key in stopped:
        if (execution := executions.active.get(round_key)) is not None:
            await execution.stop(StopReason.DRAIN)
    with anyio.move_on_after(settle_s):
        await executions.wait_until(stopped.isdisjoint)
