"""The presence of this host: its heartbeat to the edge, and the orders and timers that pause it or power it off.

A power order of the edge is to claim nothing new, or to power the machine off. It is in the host's power record. Pauses
are an operator's: of endpoints, and the maintenance of this host. Both are read with every heartbeat. Because they are
read again and again, they cannot be lost, and a new runner process reads the power order before its first claim.

The idle timer is for `runner --until-idle`: the runner ends by itself after it has had nothing to do for a time.

The dead-man timer, opt-in, is the last resort: while edge and broker answer, the edge decides. An unreachable machine
that holds nothing of any job powers itself off. The timer looks only at this machine. It is due if all of this holds
for `after_s`: edge or broker are silent, no container of a job exists in any state, no output waits for its upload, no
message is unanswered, and no one uses the machine.
"""

import os
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import anyio
import anyio.to_thread
from msgspec.structs import replace
from structlog.typing import FilteringBoundLogger

from bus.interface import BusError
from runner.claiming.loop import ClaimLoop
from runner.claiming.recovery import container_folders, parse_container_folder, resolve_claimed
from runner.claiming.schedulability import HostState, Schedulability
from runner.claiming.volumes import HostContents
from runner.claiming.warm_pool import WarmPool
from runner.context import HostContext, RunnerContext
from runner.engines.port import NO_JOB, EngineError
from runner.execution.execution import ExecutionPhase, ExecutionRegistry
from runner.gpu.allocator import GpuAllocator
from runner.host.watches import EngineMonitor
from runner.host_facts import LoginLookup
from runner.settings import DeadManSettings
from runner.slots import Slots
from schemas.host import ActivityCounts, HostCapabilities, HostHeartbeat, RunningExecution
from schemas.installation import endpoint_pause_key, maintenance_key
from schemas.outbound_rules import build_child_environment
from schemas.power import ForeignUse, PowerRecord, PowerState
from schemas.version import VERSION

# Readings of a GPU that change all the time, and are no part of the capabilities.
_CHANGING_READINGS = dict.fromkeys(("memory_free_mb", "temperature_c", "utilization", "power_w", "share_free"))


class HostActivity:
    """Activity of this host: executions, uploads, users. Before recovery is complete, unsaved results are unknown."""

    def __init__(
        self,
        slots: Slots,
        gpu_allocator: GpuAllocator,
        find_logged_in_users: LoginLookup,
        executions: ExecutionRegistry,
        state: HostState,
    ) -> None:
        self._slots = slots
        self._gpu_allocator = gpu_allocator
        self._find_logged_in_users = find_logged_in_users
        self._executions = executions
        self._state = state

    def running(self) -> tuple[RunningExecution, ...]:
        """Return the running executions."""
        return self._executions.running()

    async def measure(self) -> ActivityCounts:
        """Measure now. Users are counted in a thread: the session files are read each time."""
        users = await anyio.to_thread.run_sync(self._find_logged_in_users)
        executions = self._executions.active.values()
        return ActivityCounts(
            uploading=sum(execution.phase is not ExecutionPhase.RUNNING for execution in executions),
            unrecovered=len(self._slots.poisoned) + (not self._state.is_recovered),
            programs=len(self._gpu_allocator.foreign_gpus()),
            users=len(users),
        )

    def is_empty(self) -> bool:
        """Return whether no execution is here, and none is unaccounted for."""
        return self._state.is_recovered and not self._executions.active and not self._slots.poisoned


BLOCKED_WORK_LIMIT, REASON_LIMIT_CHARS = 5, 300


class HeartbeatPublisher:
    """Publishes the heartbeat, every few seconds and whenever the state changes."""

    def __init__(  # noqa: PLR0913, PLR0917 - each contributes one part of the heartbeat
        self,
        context: RunnerContext,
        host: HostContext,
        state: HostState,
        schedulability: Schedulability,
        contents: HostContents,
        warm_pool: WarmPool,
        activity: HostActivity,
        engine_monitor: EngineMonitor,
    ) -> None:
        self._context = context
        self._host = host
        self._engine_monitor = engine_monitor
        self._state = state
        self._schedulability = schedulability
        self._contents = contents
        self._activity = activity
        self._warm_pool = warm_pool
        self._since = context.now()
        self._published_capabilities: HostCapabilities | None = None

    async def run(self) -> None:
        """Run forever. While the broker is away the heartbeat expires, as it should.

        The capabilities go first: an edge that sees this host online also sees what it offers.
        """
        while True:
            change = self._state.changed.next_notification()
            try:
                await self._publish_capabilities()
                heartbeat = self._context.metrics.heartbeat = await self._build_heartbeat()
                await self._context.bus.heartbeats.put(self._context.host, heartbeat)
                await self._host.report_health()
            except BusError as error:
                self._context.log_unavailable("publish_heartbeat", error)
            with anyio.move_on_after(self._context.intervals.presence_s):
                await change.wait()

    async def delete_heartbeat(self) -> None:
        """Delete the heartbeat: nothing of this host runs any more, so its expiry need not be waited for."""
        await self._context.bus.heartbeats.delete(self._context.host)

    async def _build_heartbeat(self) -> HostHeartbeat:
        unschedulable = await self._schedulability.unschedulable_reasons(measure_disk=True)
        engine = self._state.engine
        return HostHeartbeat(
            host=self._context.host,
            incarnation=self._context.incarnation,
            at=self._context.now(),
            since=self._since,
            draining=self._state.is_draining or self._state.is_paused,
            slots=self._host.slots.count,
            engine=self._context.engine.name,
            engine_away=self._state.engine_away,
            run_as=self._host.run_as,
            injection=self._engine_monitor.injection,
            gpu_state=self._host.gpu_allocator.snapshot.state,
            gpus=self._host.gpu_allocator.reports(),
            gpus_assigned=self._host.gpu_allocator.snapshot.assigned[:REASON_LIMIT_CHARS] or None,
            running=self._activity.running(),
            activity=await self._activity.measure(),
            warm=self._warm_pool.reports(),
            blocked_work=tuple(
                reason[:REASON_LIMIT_CHARS] for reason in self._context.outage.reasons[:BLOCKED_WORK_LIMIT]
            ),
            version=VERSION,
            secrets_on_disk=not self._context.secrets.is_in_memory,
            isolation=engine.isolation if engine else None,
            runtimes=tuple(runtime.name for runtime in engine.runtimes) if engine else (),
            images=self._contents.images.reports(),
            volumes=self._contents.volumes.reports(),
            unschedulable={name: str(reason) for name, reason in unschedulable.items()},
        )

    async def _publish_capabilities(self) -> None:
        """Publish the capabilities when they have changed: endpoints, slots, GPUs, labels, and what is lacking."""
        capabilities = HostCapabilities(
            host=self._context.host,
            incarnation=self._context.incarnation,
            at=self._since,
            endpoints=tuple(endpoint.config.offered for endpoint in self._host.endpoints.values()),
            programs={name: endpoint.program for name, endpoint in self._host.endpoints.items()},
            sources={
                name: digest
                for name, endpoint in self._host.endpoints.items()
                if (digest := endpoint.source_digest) is not None
            },
            slots=self._host.slots.count,
            gpus=tuple(replace(gpu, **_CHANGING_READINGS) for gpu in self._host.gpu_allocator.reports()),
            labels=dict(self._host.labels),
            unmet=self._schedulability.unmet_requirements(),
        )
        if capabilities != self._published_capabilities:
            await self._context.bus.capabilities.put(self._context.host, replace(capabilities, at=self._context.now()))
            self._published_capabilities = capabilities


PAUSED_STATES = frozenset({PowerState.DRAINING, PowerState.STOPPING})


class PowerCommands:
    """Follows the power record of this host."""

    def __init__(self, context: RunnerContext, state: HostState) -> None:
        self._context = context
        self._state = state

    async def run(self, is_empty: Callable[[], bool], poweroff: Sequence[str]) -> None:
        """Run forever. Start the program `poweroff` once the order is to stop and nothing is left here."""
        while True:
            order = await self.apply()
            if order is not None and poweroff and _must_power_off(order) and is_empty():
                self._context.log.warning("power_off_started", program=poweroff[0])
                await power_off(poweroff, self._context.log)
            await anyio.sleep(self._context.intervals.presence_s)

    async def apply(self) -> PowerRecord | None:
        """Read and apply the order; return None if the host is not declared, or if the broker is away."""
        try:
            entry = await self._context.bus.power_records.get(self._context.host)
        except BusError as error:
            self._context.log_unavailable("orders", error)
            return None
        paused = entry is not None and entry.value.state in PAUSED_STATES
        if self._state.set_paused(paused):
            self._context.log.info("power_order_received", paused=paused)
        return None if entry is None else entry.value


def _must_power_off(order: PowerRecord) -> bool:
    return order.state is PowerState.STOPPING and order.runner_powers_off


async def power_off(program: Sequence[str], log: FilteringBoundLogger) -> None:
    """Run the owner's program that powers this machine off, in a session of its own so that it outlives us.

    A program that does not start or fails is logged as an error: the machine and the runner stay up.
    """
    if problem := await _run_program(program):
        log.error("power_off_failed", remedy="correct `poweroff` in the settings", program=program[0], error=problem)


async def _run_program(program: Sequence[str]) -> str:
    """Return what went wrong, or ""."""
    try:
        result = await anyio.run_process(
            list(program), check=False, env=build_child_environment(os.environ), start_new_session=True
        )
    except OSError as error:
        return str(error)
    stderr = result.stderr.decode(errors="replace").strip()[-200:]
    return f"exit code {result.returncode}: {stderr}" if result.returncode else ""


class PauseWatch:
    """Applies the pauses of endpoints, and the maintenance of this host, to what is claimed."""

    def __init__(self, context: RunnerContext, host: HostContext, state: HostState) -> None:
        self._context = context
        self._host = host
        self._state = state

    async def run(self) -> None:
        """Read the pauses again at the interval of the heartbeat, forever."""
        while True:
            await self.apply()
            await anyio.sleep(self._context.intervals.presence_s)

    async def apply(self) -> None:
        """Read and apply the pauses. While the broker is away, the last ones hold."""
        try:
            keys = await self._context.bus.pauses.keys()
        except BusError as error:
            self._context.log_unavailable("pauses", error)
            return
        endpoints = frozenset(name for name in self._host.endpoints if endpoint_pause_key(name) in keys)
        is_in_maintenance = maintenance_key(self._context.host) in keys
        if self._state.set_pauses(endpoints, is_in_maintenance=is_in_maintenance):
            self._context.log.info("pauses_changed", endpoints=sorted(endpoints), maintenance=is_in_maintenance)


IDLE_CHECK_INTERVAL_S = 1.0


class IdleTimer:
    """Stops claiming after `after_s` without work; None: never.

    Work is a job that runs, a result that is being delivered, a message that is being answered, and an image or a
    volume that is being fetched: a job may wait for it. While the broker is away there is no work, so a rented machine
    is given back.
    """

    def __init__(
        self, after_s: float | None, activity: HostActivity, claim_loop: ClaimLoop, contents: HostContents
    ) -> None:
        self._after_s = after_s
        self._activity = activity
        self._claim_loop = claim_loop
        self._contents = contents

    async def run(self, on_idle: Callable[[], None]) -> None:
        """Return after the time without work, and after `on_idle` was called. The claim loop claims nothing then."""
        if self._after_s is None:
            return
        interval_s = min(IDLE_CHECK_INTERVAL_S, self._after_s / 4)
        # Intervals are counted, not the clock read: a machine that was suspended did not look for work meanwhile.
        idle_s, started = 0.0, 0
        while True:
            await anyio.sleep(interval_s)
            # No await from here to `stop`: a message that comes in the meantime is returned, not lost.
            if self._is_busy() or started != self._claim_loop.jobs_started:
                idle_s, started = 0.0, self._claim_loop.jobs_started
            elif (idle_s := idle_s + interval_s) >= self._after_s:
                self._claim_loop.stop()
                on_idle()
                return

    def _is_busy(self) -> bool:
        return not self._activity.is_empty() or self._claim_loop.is_handling or self._contents.is_fetching


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
