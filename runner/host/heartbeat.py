"""What keeps this host busy: executions, outputs on their way, people who are logged in, other people's programs."""

import anyio
import anyio.to_thread
from msgspec.structs import replace

from bus.interface import BusError
from runner.claiming.schedulability import Schedulability
from runner.claiming.warm_pool import WarmPool
from runner.context import HostContext, RunnerContext
from runner.execution.execution import ExecutionPhase, ExecutionRegistry
from runner.gpu.allocator import GpuAllocator
from runner.host.engine_monitor import EngineMonitor
from runner.login_sessions import LoginLookup
from runner.slots import Slots
from schemas.host import ActivityCounts, HostCapabilities, HostHeartbeat, RunningExecution


class HostActivity:
    """`settled` is set once what earlier lives left has been looked at: before that nobody knows what is unsaved."""

    def __init__(self, slots: Slots, cards: GpuAllocator, logins: LoginLookup, roster: ExecutionRegistry) -> None:
        self._slots = slots
        self._gpu_allocator = cards
        self._find_logged_in_users = logins
        self._executions = roster
        self.is_recovered = False

    def running(self) -> tuple[RunningExecution, ...]:
        """The executions."""
        return self._executions.running()

    async def measure(self) -> ActivityCounts:
        """Now. People are counted in a thread: the files that name them are read anew each time."""
        users = await anyio.to_thread.run_sync(self._find_logged_in_users)
        executions = self._executions.active.values()
        return ActivityCounts(
            uploading=sum(execution.phase is not ExecutionPhase.RUNNING for execution in executions),
            unrecovered=len(self._slots.poisoned) + (not self.is_recovered),
            programs=len(self._gpu_allocator.foreign_gpus()),
            users=len(users),
        )

    def is_empty(self) -> bool:
        """Whether no execution is here, and none is missing."""
        return self.is_recovered and not self._executions.active and not self._slots.poisoned


# MERGED runner/presence.py: The host speaks of itself: a heartbeat in HOSTS, which forgets, and an offer in OFFERS,
# which outlives the host.


WHYS, WHY_CHARACTERS = 5, 300  # of what the runner waits for


class HeartbeatPublisher:
    """Says what is true now, every few seconds and whenever `hurry` is called."""

    def __init__(  # noqa: PLR0913, PLR0917 - each knows one part of what is said
        self,
        life: RunnerContext,
        means: HostContext,
        ready: Schedulability,
        standby: WarmPool,
        idleness: HostActivity,
        engine: EngineMonitor,
    ) -> None:
        self._context = life
        self._host = means
        self._engine_monitor = engine
        self._schedulability = ready
        self._activity = idleness
        self._warm_pool = standby
        self._since = life.now()
        self._publish_requested = anyio.Event()
        self._published_capabilities: HostCapabilities | None = None
        self.is_draining = False

    async def run(self) -> None:
        """Without end. While the broker is away HOSTS forgets this host, as it should."""
        while True:
            try:
                await self._context.bus.heartbeats.put(self._context.host, await self._build_heartbeat())
                await self._publish_capabilities()
            except BusError as error:
                self._context.log_unavailable("announce", error)
            with anyio.move_on_after(self._context.intervals.presence_s):
                await self._publish_requested.wait()
            self._publish_requested = anyio.Event()

    def publish_now(self) -> None:
        """Say it now."""
        self._publish_requested.set()

    async def delete_heartbeat(self) -> None:
        """Nothing of this host runs any more: it need not be waited for."""
        await self._context.bus.heartbeats.delete(self._context.host)

    async def _build_heartbeat(self) -> HostHeartbeat:
        cannot = await self._schedulability.unschedulable_reasons(anew=True)
        return HostHeartbeat(
            host=self._context.host,
            incarnation=self._context.incarnation,
            at=self._context.now(),
            since=self._since,
            draining=self.is_draining or self._schedulability.is_paused,
            slots=self._host.slots.count,
            engine=self._context.engine.name,
            engine_away=self._schedulability.engine_away,
            run_as=self._host.run_as,
            injection=self._engine_monitor.injection,
            gpu_state=self._host.gpu_allocator.snapshot.state,
            gpus=self._host.gpu_allocator.reports(),
            running=self._activity.running(),
            activity=await self._activity.measure(),
            warm=self._warm_pool.reports(),
            blocked_work=tuple(why[:WHY_CHARACTERS] for why in self._context.outage.reasons[:WHYS]),
            unschedulable={name: str(reason) for name, reason in cannot.items()},
        )

    async def _publish_capabilities(self) -> None:
        """Written when it says something else than the last one: endpoints, slots, which cards there are."""
        offer = HostCapabilities(
            host=self._context.host,
            incarnation=self._context.incarnation,
            at=self._since,
            endpoints=tuple(kind.config for kind in self._host.endpoints.values()),
            slots=self._host.slots.count,
            gpus=tuple(
                replace(card, memory_free_mb=None, temperature_c=None, utilization=None, power_w=None)
                for card in self._host.gpu_allocator.reports()
            ),
        )
        if offer != self._published_capabilities:
            await self._context.bus.capabilities.put(self._context.host, replace(offer, at=self._context.now()))
            self._published_capabilities = offer
