"""Heartbeat of this host, and the activity that keeps it busy.

The heartbeat goes to a bucket whose entries expire; the capabilities go to one whose entries outlive the host.
"""

import anyio
import anyio.to_thread
from msgspec.structs import replace

from bus.interface import BusError
from runner.claiming.schedulability import HostState, Schedulability
from runner.claiming.volumes import HostContents
from runner.claiming.warm_pool import WarmPool
from runner.context import HostContext, RunnerContext
from runner.execution.execution import ExecutionPhase, ExecutionRegistry
from runner.gpu.allocator import GpuAllocator
from runner.host.engine_monitor import EngineMonitor
from runner.login_sessions import LoginLookup
from runner.slots import Slots
from schemas.host import ActivityCounts, HostCapabilities, HostHeartbeat, RunningExecution
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
