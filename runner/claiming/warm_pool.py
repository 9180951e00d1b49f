"""Warm containers that have loaded and wait, so that a job starts in milliseconds.

Each is used once. While a job runs, the next one is started only if it fits beside the job; otherwise right after it.
If one dies while it loads, the next is started after a backoff, and the host reports the reason. A waiting container is
evicted for a job of another endpoint that needs its resources, and when the machine's owner uses the GPU.
"""

from contextlib import aclosing
from functools import partial
from itertools import count

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup
from msgspec.structs import replace

from runner.claiming.schedulability import Schedulability, free_memory_mb
from runner.context import HostContext, RunnerContext
from runner.endpoints import LocalEndpoint, container_spec
from runner.engines.port import WARM_ENV, ContainerIdentity, EngineError
from runner.execution.verdict import IMAGE_FAULTS
from runner.execution.warm_container import WARM_PREFIX, WarmContainer
from runner.gpu.allocator import GpuAllocation
from runner.gpu.placement import Placed
from runner.outage import FailureBackoff
from schemas.container_protocol import ErrorLine, ExitCode, LineParser, ReadyLine
from schemas.host import WarmPoolStatus


class WarmPool:
    """What waits, by endpoint. `take` gives one away; `run` sees to it that there is another."""

    def __init__(self, context: RunnerContext, host: HostContext, schedulability: Schedulability) -> None:
        self._context = context
        self._host = host
        self._schedulability = schedulability
        self._endpoints = {
            name: endpoint for name, endpoint in host.endpoints.items() if host.warm.on and endpoint.config.warm
        }
        self._containers: list[WarmContainer] = []
        self._backoffs = {name: FailureBackoff() for name in self._endpoints}
        self._numbers = count(1)
        self._changed = anyio.Event()
        self._is_open = True

    async def run(self) -> None:
        """Keep as many waiting as there should be and can be, without end."""
        async with anyio.create_task_group() as tasks:
            while True:
                if self._is_open:
                    self._evict_unfit()
                    await self._fill(tasks)
                with anyio.move_on_after(self._context.intervals.idle_s):
                    await self._changed.wait()

    def notify(self) -> None:
        """Something has changed that may make room for one more."""
        self._changed.set()
        self._changed = anyio.Event()

    def take(self, endpoint: LocalEndpoint) -> WarmContainer | None:
        """The container that takes the next job of this kind, ready ones first; None: start one."""
        for warm in sorted(self._containers, key=lambda one: not one.is_ready):
            if (
                warm.endpoint is endpoint
                and not warm.is_ending
                and self._host.gpu_allocator.can_start(warm.allocation, endpoint.config)
            ):
                warm.is_taken = True
                warm.allocation.is_idle = False
                self._containers.remove(warm)
                return warm
        return None

    async def give_back(self, warm: WarmContainer) -> None:
        """One that was taken got no job after all, and nothing was sent to it: it waits on, if it still can."""
        there = sum(1 for one in self._containers if one.endpoint is warm.endpoint)
        if self._is_open and not warm.is_unwatched and there < self._host.warm.count:
            warm.is_taken = False
            warm.allocation.is_idle = True
            self._containers.append(warm)
            return
        warm.stop_watching()
        await warm.settled.wait()
        await self._discard(warm)
        self.notify()

    async def evict_for(self, allocation: GpuAllocation) -> None:
        """Remove what waits on these cards if the container of `holding` would not fit beside it."""
        if not self._host.gpu_allocator.must_evict_warm(allocation):
            return
        going = [warm for warm in self._containers if set(warm.allocation.uuids) & set(allocation.uuids)]
        for warm in going:
            warm.stop_watching()
        for warm in going:
            await warm.removed.wait()

    async def close(self) -> None:
        """Remove all that waits, and start nothing more."""
        self._is_open = False
        going = tuple(self._containers)
        for warm in going:
            warm.stop_watching()
        for warm in going:
            await warm.removed.wait()

    def reports(self) -> tuple[WarmPoolStatus, ...]:
        """As the host's presence shows them."""
        return tuple(self._report(name) for name in self._endpoints)

    def _report(self, name: str) -> WarmPoolStatus:
        mine = [warm for warm in self._containers if warm.endpoint.config.name == name]
        schedulability = sum(1 for warm in mine if warm.is_ready)
        pause, now = self._backoffs[name], anyio.current_time()
        left_s = round(pause.left_s(now), 1) if pause.is_waiting(now) else None
        return WarmPoolStatus(name, schedulability, len(mine) - schedulability, pause.reason or None, left_s)

    def _evict_unfit(self) -> None:
        for warm in self._containers:
            if self._host.gpu_allocator.is_unfit(warm.allocation):
                warm.stop_watching()

    async def _fill(self, tasks: TaskGroup) -> None:
        """Start what is missing, one of each kind at a time: each may take the room that the next one counts on."""
        for name, endpoint in self._endpoints.items():
            there = sum(1 for warm in self._containers if warm.endpoint is endpoint)
            if there < self._host.warm.count and not self._backoffs[name].is_waiting(anyio.current_time()):
                allocation = await self._allocate(endpoint)
                if allocation is not None and not self._is_open:
                    allocation.release()
                elif allocation is not None:
                    warm = WarmContainer(
                        f"{WARM_PREFIX}{self._context.incarnation}-{next(self._numbers)}", endpoint, allocation
                    )
                    self._containers.append(warm)
                    tasks.start_soon(self._run_container, warm)

    async def _allocate(self, endpoint: LocalEndpoint) -> GpuAllocation | None:
        """The cards for one more, if it fits beside everything that is there."""
        free = await anyio.to_thread.run_sync(free_memory_mb)
        loading = sum(one.endpoint.config.resources.memory_mb for one in self._containers if not one.is_ready)
        if free - loading < endpoint.config.resources.memory_mb + self._host.warm.memory_reserve_mb:
            return None
        placed = await self._schedulability.place(endpoint, warm=True)
        return (
            self._host.gpu_allocator.allocate(placed.uuids, endpoint.config, is_idle=True)
            if isinstance(placed, Placed)
            else None
        )

    async def _run_container(self, warm: WarmContainer) -> None:
        """One of them, from its start until it has its job or is no use any more."""
        pause = self._backoffs[warm.endpoint.config.name]
        why = ""
        with warm.watch_scope:
            try:
                await self._start_and_watch(warm)
            except (EngineError, OSError) as error:
                why = str(error) or type(error).__name__
        warm.is_unwatched = True
        warm.settled.set()
        if why:
            pause.record_failure(why, anyio.current_time(), self._host.warm.backoff_s, self._host.warm.backoff_most_s)
            self._context.log.warning("warm slot failed", endpoint=warm.endpoint.config.name, why=why)
        if not warm.is_taken:
            await self._discard(warm)
        self.notify()

    async def _start_and_watch(self, warm: WarmContainer) -> None:
        """Start it and follow it while it waits, as long as it may. Raises EngineError when it is no use."""
        folder = self._context.jobs_dir / warm.folder
        mine = ContainerIdentity(installation=self._context.installation, host=self._context.host, spare=warm.folder)
        spec = container_spec(warm.endpoint, mine, (folder / "job").resolve(), warm.allocation.uuids)
        await anyio.to_thread.run_sync(partial((folder / "job").mkdir, parents=True))
        warm.handle = await self._context.engine.start(replace(spec, env={WARM_ENV: "1"}))
        await warm.allocation.container_started(warm.handle)
        with anyio.move_on_after(self._host.warm.ready_s) as patience:
            said = await self._follow(warm, warm.handle, patience)
            await self._raise_death(warm, warm.handle, said)
        if not warm.is_ready:
            raise EngineError(f"not ready after {self._host.warm.ready_s:.0f} s")

    async def _follow(self, warm: WarmContainer, handle: str, patience: anyio.CancelScope) -> ErrorLine | None:
        """Read what it says; its last error line, if it ends. Once it is ready, `patience` counts its age."""
        said: ErrorLine | None = None
        parsers = {"stdout": LineParser("stdout"), "stderr": LineParser("stderr")}
        async with aclosing(self._context.engine.output(handle, None)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                for parsed in parsers[chunk.stream].feed(chunk.data, chunk.cursor.offset - len(chunk.data)):
                    if isinstance(parsed.message, ErrorLine):
                        said = parsed.message
                    if isinstance(parsed.message, ReadyLine) and not warm.is_ready:
                        patience.deadline = anyio.current_time() + self._host.warm.recycle_s
                        self._mark_ready(warm)
        return said

    def _mark_ready(self, warm: WarmContainer) -> None:
        warm.is_ready = True
        warm.settled.set()
        self._backoffs[warm.endpoint.config.name].reset()

    async def _raise_death(self, warm: WarmContainer, handle: str, said: ErrorLine | None) -> None:
        """It has exited, which it never should while it waits."""
        ended = await self._context.engine.wait(handle)
        if warm.is_taken and warm.is_ready:
            return  # the job's end, seen before we were told that it has its job
        why = f"{said.code}: {said.message}" if said else f"it exited with code {ended.code}"
        if ended.code == ExitCode.GPU_UNUSABLE and (said is None or said.code not in IMAGE_FAULTS):
            warm.allocation.mark_faulty(why)
        raise EngineError(f"the container died while it waited: {why}")

    async def _discard(self, warm: WarmContainer) -> None:
        """Container and folder go; then its cards are free."""
        if warm in self._containers:
            self._containers.remove(warm)
        await self._context.retry_engine_call("remove", partial(self._remove, warm))
        await self._context.delete_folder(self._context.jobs_dir / warm.folder)
        warm.allocation.release()
        warm.removed.set()

    async def _remove(self, warm: WarmContainer) -> None:
        """By its handle, or, where a start was not answered, by its folder's name."""
        if warm.handle is not None:
            return await self._context.engine.remove(warm.handle)
        for found in await self._context.engine.find(self._context.installation, self._context.host):
            if found.identity.spare == warm.folder:
                await self._context.engine.remove(found.handle)
        return None
