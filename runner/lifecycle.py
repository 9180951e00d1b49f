"""One runner process from its recovery to its drain: builds the parts and runs them."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import anyio
from anyio.abc import TaskGroup

from bus.interface import BusError
from runner.assets.volume_store import GIB
from runner.claiming.images import HostImages
from runner.claiming.loop import ClaimLoop
from runner.claiming.recovery import ContainerRecovery
from runner.claiming.schedulability import HostState, Schedulability
from runner.claiming.volumes import HostContents, HostVolumes
from runner.claiming.warm_pool import WarmPool
from runner.context import DropAssets, HostContext, RunnerContext, run_in_background
from runner.endpoints import LocalEndpoint
from runner.execution.disk_usage import sweep_caches
from runner.execution.execution import ENDING_PHASES, Execution, ExecutionRegistry
from runner.execution.verdict import StopReason
from runner.host.presence import DeadManTimer, HeartbeatPublisher, HostActivity, IdleTimer, PauseWatch, PowerCommands
from runner.host.watches import DeletedOwners, EndpointWatch, EngineMonitor, GpuProber, detect_injection

ENGINE_AWAY_SETTLE_TIMEOUT_S = 2.0
DAY_S = 86_400.0


class RunnerParts(NamedTuple):
    """The parts of one runner process."""

    state: HostState
    contents: HostContents
    endpoint_watch: EndpointWatch
    warm_pool: WarmPool
    executions: ExecutionRegistry
    recovery: ContainerRecovery
    deleted_owners: DeletedOwners
    claim_loop: ClaimLoop
    activity: HostActivity
    engine_monitor: EngineMonitor
    heartbeat: HeartbeatPublisher
    power_commands: PowerCommands
    pause_watch: PauseWatch
    dead_man: DeadManTimer
    gpu_prober: GpuProber
    idle_timer: IdleTimer


async def run_lifecycle(
    context: RunnerContext,
    host: HostContext,
    stop: anyio.Event,
    ready: Callable[[], None],
    on_idle: Callable[[], None] = lambda: None,
) -> bool:
    """Recover, then claim and run jobs until `stop`, then drain. Return whether nothing of a job is left here.

    `ready` is called when the runner begins to claim. `on_idle`: when it has had nothing to do for `until_idle_s`, and
    claims nothing any more.
    """
    async with anyio.create_task_group() as background, anyio.create_task_group() as jobs:
        parts = _build_parts(context, host, jobs)
        background.start_soon(host.gpu_allocator.run)
        await parts.engine_monitor.probe_once()
        background.start_soon(parts.engine_monitor.run)
        background.start_soon(parts.heartbeat.run)
        background.start_soon(parts.power_commands.run, parts.activity.is_empty, host.poweroff)
        background.start_soon(parts.pause_watch.run)
        background.start_soon(parts.dead_man.run, host.poweroff)
        background.start_soon(_follow_nudges, context, parts.executions)
        background.start_soon(parts.idle_timer.run, on_idle)
        await parts.power_commands.apply()
        await parts.pause_watch.apply()
        jobs.start_soon(_recover_and_claim, context, host, parts, background, ready)
        await stop.wait()
        await _drain_parts(context, host, parts)
        left_running = len(parts.executions.active)
        jobs.cancel_scope.cancel()
        background.cancel_scope.cancel()
    context.log.info("runner_stopped", left_running=left_running)
    is_empty = not left_running and parts.state.is_recovered
    if is_empty:
        with suppress(BusError), anyio.move_on_after(context.intervals.retry_most_s):
            await parts.heartbeat.delete_heartbeat()
    return is_empty


def _build_parts(context: RunnerContext, host: HostContext, jobs: TaskGroup) -> RunnerParts:
    """Build the parts. Executions run in `jobs`."""
    state = HostState(host.labels, host.end)

    def used_endpoints() -> list[LocalEndpoint]:
        return [*(one.assignment.endpoint for one in executions.active.values()), *warm_pool.used_endpoints()]

    contents = HostContents(
        HostImages(context, host, state.changed), HostVolumes(context, host, state.changed, used_endpoints)
    )
    schedulability = Schedulability(host.endpoints, host.gpu_allocator, context.jobs_dir, contents, state)
    warm_pool = WarmPool(context, host, schedulability)
    executions = ExecutionRegistry(context, jobs, partial(_on_execution_ended, schedulability, warm_pool))
    recovery = ContainerRecovery(context, host, executions)
    activity = HostActivity(host.slots, host.gpu_allocator, host.find_logged_in_users, executions, state)
    engine_monitor = EngineMonitor(context, state, partial(detect_injection, context, host))
    claim_loop = ClaimLoop(context, host, schedulability, warm_pool, executions, recovery)
    return RunnerParts(
        state=state,
        contents=contents,
        endpoint_watch=EndpointWatch(context, host, partial(_on_endpoints_changed, contents, warm_pool, state)),
        warm_pool=warm_pool,
        executions=executions,
        recovery=recovery,
        deleted_owners=DeletedOwners(context, warm_pool),
        claim_loop=claim_loop,
        activity=activity,
        engine_monitor=engine_monitor,
        heartbeat=HeartbeatPublisher(
            context, host, state, schedulability, contents, warm_pool, activity, engine_monitor
        ),
        power_commands=PowerCommands(context, state),
        pause_watch=PauseWatch(context, host, state),
        dead_man=DeadManTimer(context, host.dead_man, activity, host.is_edge_alive),
        gpu_prober=GpuProber(context, host),
        idle_timer=IdleTimer(host.until_idle_s, activity, claim_loop, contents),
    )


async def _recover_and_claim(
    context: RunnerContext, host: HostContext, parts: RunnerParts, background: TaskGroup, ready: Callable[[], None]
) -> None:
    """Recover, then claim. The parts that start containers without a job wait until recovery is complete."""
    # Before the engine has answered, nothing can be started, and containers cannot be found.
    await parts.engine_monitor.wait_until_ready()
    await parts.contents.look()
    background.start_soon(parts.contents.images.run)
    background.start_soon(parts.contents.volumes.run)
    background.start_soon(parts.endpoint_watch.run)
    await parts.recovery.recover_all()
    await context.retry_while_unavailable(
        "drop_deleted_assets", partial(_drop_deleted_assets, context, host.drop_assets)
    )
    await context.retry_while_unavailable("remove_deleted_owners", parts.deleted_owners.apply)
    parts.state.set_recovered()
    background.start_soon(parts.warm_pool.run)
    background.start_soon(parts.gpu_prober.run)
    ready()
    async with run_in_background(partial(_run_periodic_cleanup, context, host, parts)):
        await parts.claim_loop.run()


async def _drain_parts(context: RunnerContext, host: HostContext, parts: RunnerParts) -> None:
    """Stop claiming, remove the warm containers, and end or leave the jobs."""
    context.log.info("drain_started", running=len(parts.executions.active))
    parts.claim_loop.stop()
    parts.state.set_draining()
    # An engine that is away stops and removes nothing; recovery after the next start does.
    is_away = parts.state.engine_away is not None
    settle_s = min(host.settle_s, ENGINE_AWAY_SETTLE_TIMEOUT_S) if is_away else host.settle_s
    with anyio.move_on_after(settle_s):
        await parts.warm_pool.close()
    await drain(
        parts.executions,
        grace_s=host.grace_s,
        settle_s=settle_s,
        leave_containers=context.engine.containers_outlive_runner,
    )


def _on_execution_ended(schedulability: Schedulability, warm_pool: WarmPool, execution: Execution) -> None:
    schedulability.learn_from(execution)
    warm_pool.notify()


def _on_endpoints_changed(contents: HostContents, warm_pool: WarmPool, state: HostState) -> None:
    contents.notify()
    warm_pool.notify()
    state.changed.notify()


async def _run_periodic_cleanup(context: RunnerContext, host: HostContext, parts: RunnerParts) -> None:
    """Clean up periodically what no notification covers: caches, poisoned slots, deleted assets and owners."""
    while True:
        await anyio.sleep(context.intervals.sweep_s)
        await _sweep_caches(context, host)
        with suppress(BusError):
            await parts.recovery.recover_poisoned_slots()
            await _drop_deleted_assets(context, host.drop_assets)
            await parts.deleted_owners.apply()


async def _sweep_caches(context: RunnerContext, host: HostContext) -> None:
    if context.folders is None:
        return
    oldest_use = context.now().timestamp() - host.caches.keep_days * DAY_S
    sweep = partial(sweep_caches, context.folders.caches, context.jobs_dir, oldest_use, int(host.caches.max_gb * GIB))
    try:
        for swept in await anyio.to_thread.run_sync(sweep, limiter=context.disk_walk_limiter):
            context.log.info("cache_swept", cache=swept.key, reason=swept.why)
    except OSError as error:
        context.log.warning("operation_failed", operation="sweep_caches", error=str(error))


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
    or that has no container yet, is stopped and released at no cost to the job. A job whose end is being recorded is
    waited for too: it has no container to adopt, and its message and its folder would stay until the next start.
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
        await executions.wait_until(
            lambda active: not any(key in stopped or left.phase in ENDING_PHASES for key, left in active.items())
        )
