"""Warm slots: containers that have loaded and wait, so that a job starts in milliseconds (DESIGN 4).

Each is used once. While a job runs the next one is started only where it fits beside it; else right after. One that
dies while it warms is followed by the next after a pause that doubles, and the host says why. What waits gives way: to
a job of another kind that needs its room, and to the card's owner.
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

    def __init__(self, life: RunnerContext, means: HostContext, ready: Schedulability) -> None:
        self._context = life
        self._host = means
        self._schedulability = ready
        self._endpoints = {name: kind for name, kind in means.endpoints.items() if means.warm.on and kind.config.warm}
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

    def take(self, kind: LocalEndpoint) -> WarmContainer | None:
        """The container that takes the next job of this kind, ready ones first; None: start one."""
        for spare in sorted(self._containers, key=lambda one: not one.is_ready):
            if (
                spare.endpoint is kind
                and not spare.is_ending
                and self._host.gpu_allocator.can_start(spare.allocation, kind.config)
            ):
                spare.is_taken = True
                spare.allocation.is_idle = False
                self._containers.remove(spare)
                return spare
        return None

    async def give_back(self, spare: WarmContainer) -> None:
        """One that was taken got no job after all, and nothing was sent to it: it waits on, if it still can."""
        there = sum(1 for one in self._containers if one.endpoint is spare.endpoint)
        if self._is_open and not spare.is_unwatched and there < self._host.warm.count:
            spare.is_taken = False
            spare.allocation.is_idle = True
            self._containers.append(spare)
            return
        spare.stop_watching()
        await spare.settled.wait()
        await self._discard(spare)
        self.notify()

    async def evict_for(self, holding: GpuAllocation) -> None:
        """Remove what waits on these cards if the container of `holding` would not fit beside it."""
        if not self._host.gpu_allocator.must_evict_warm(holding):
            return
        going = [spare for spare in self._containers if set(spare.allocation.uuids) & set(holding.uuids)]
        for spare in going:
            spare.stop_watching()
        for spare in going:
            await spare.removed.wait()

    async def close(self) -> None:
        """Remove all that waits, and start nothing more."""
        self._is_open = False
        going = tuple(self._containers)
        for spare in going:
            spare.stop_watching()
        for spare in going:
            await spare.removed.wait()

    def reports(self) -> tuple[WarmPoolStatus, ...]:
        """As the host's presence shows them."""
        return tuple(self._report(name) for name in self._endpoints)

    def _report(self, name: str) -> WarmPoolStatus:
        mine = [spare for spare in self._containers if spare.endpoint.config.name == name]
        ready = sum(1 for spare in mine if spare.is_ready)
        pause, now = self._backoffs[name], anyio.current_time()
        left_s = round(pause.left_s(now), 1) if pause.is_waiting(now) else None
        return WarmPoolStatus(name, ready, len(mine) - ready, pause.reason or None, left_s)

    def _evict_unfit(self) -> None:
        for spare in self._containers:
            if self._host.gpu_allocator.is_unfit(spare.allocation):
                spare.stop_watching()

    async def _fill(self, tasks: TaskGroup) -> None:
        """Start what is missing, one of each kind at a time: each may take the room that the next one counts on."""
        for name, kind in self._endpoints.items():
            there = sum(1 for spare in self._containers if spare.endpoint is kind)
            if there < self._host.warm.count and not self._backoffs[name].is_waiting(anyio.current_time()):
                holding = await self._allocate(kind)
                if holding is not None and not self._is_open:
                    holding.release()
                elif holding is not None:
                    spare = WarmContainer(
                        f"{WARM_PREFIX}{self._context.incarnation}-{next(self._numbers)}", kind, holding
                    )
                    self._containers.append(spare)
                    tasks.start_soon(self._run_container, spare)

    async def _allocate(self, kind: LocalEndpoint) -> GpuAllocation | None:
        """The cards for one more, if it fits beside everything that is there."""
        free = await anyio.to_thread.run_sync(free_memory_mb)
        loading = sum(one.endpoint.config.resources.memory_mb for one in self._containers if not one.is_ready)
        if free - loading < kind.config.resources.memory_mb + self._host.warm.memory_reserve_mb:
            return None
        placed = await self._schedulability.place(kind, ahead=True)
        return (
            self._host.gpu_allocator.allocate(placed.uuids, kind.config, idle=True)
            if isinstance(placed, Placed)
            else None
        )

    async def _run_container(self, spare: WarmContainer) -> None:
        """One of them, from its start until it has its job or is no use any more."""
        pause = self._backoffs[spare.endpoint.config.name]
        why = ""
        with spare.watch_scope:
            try:
                await self._start_and_watch(spare)
            except (EngineError, OSError) as error:
                why = str(error) or type(error).__name__
        spare.is_unwatched = True
        spare.settled.set()
        if why:
            pause.record_failure(why, anyio.current_time(), self._host.warm.backoff_s, self._host.warm.backoff_most_s)
            self._context.log.warning("warm slot failed", endpoint=spare.endpoint.config.name, why=why)
        if not spare.is_taken:
            await self._discard(spare)
        self.notify()

    async def _start_and_watch(self, spare: WarmContainer) -> None:
        """Start it and follow it while it waits, as long as it may. Raises EngineError when it is no use."""
        folder = self._context.jobs_dir / spare.folder
        mine = ContainerIdentity(installation=self._context.installation, host=self._context.host, spare=spare.folder)
        spec = container_spec(spare.endpoint, mine, (folder / "job").resolve(), spare.allocation.uuids)
        await anyio.to_thread.run_sync(partial((folder / "job").mkdir, parents=True))
        spare.handle = await self._context.engine.start(replace(spec, env={WARM_ENV: "1"}))
        await spare.allocation.container_started(spare.handle)
        with anyio.move_on_after(self._host.warm.ready_s) as patience:
            said = await self._follow(spare, spare.handle, patience)
            await self._raise_death(spare, spare.handle, said)
        if not spare.is_ready:
            raise EngineError(f"not ready after {self._host.warm.ready_s:.0f} s")

    async def _follow(self, spare: WarmContainer, handle: str, patience: anyio.CancelScope) -> ErrorLine | None:
        """Read what it says; its last error line, if it ends. Once it is ready, `patience` counts its age."""
        said: ErrorLine | None = None
        parsers = {"stdout": LineParser("stdout"), "stderr": LineParser("stderr")}
        async with aclosing(self._context.engine.output(handle, None)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                for parsed in parsers[chunk.stream].feed(chunk.data, chunk.cursor.offset - len(chunk.data)):
                    if isinstance(parsed.message, ErrorLine):
                        said = parsed.message
                    if isinstance(parsed.message, ReadyLine) and not spare.is_ready:
                        patience.deadline = anyio.current_time() + self._host.warm.recycle_s
                        self._mark_ready(spare)
        return said

    def _mark_ready(self, spare: WarmContainer) -> None:
        spare.is_ready = True
        spare.settled.set()
        self._backoffs[spare.endpoint.config.name].reset()

    async def _raise_death(self, spare: WarmContainer, handle: str, said: ErrorLine | None) -> None:
        """It has exited, which it never should while it waits."""
        ended = await self._context.engine.wait(handle)
        if spare.is_taken and spare.is_ready:
            return  # the job's end, seen before we were told that it has its job
        why = f"{said.code}: {said.message}" if said else f"it exited with code {ended.code}"
        if ended.code == ExitCode.GPU_UNUSABLE and (said is None or said.code not in IMAGE_FAULTS):
            spare.allocation.mark_faulty(why)
        raise EngineError(f"the container died while it waited: {why}")

    async def _discard(self, spare: WarmContainer) -> None:
        """Container and folder go; then its cards are free."""
        if spare in self._containers:
            self._containers.remove(spare)
        await self._context.retry_engine_call("remove", partial(self._remove, spare))
        await self._context.delete_folder(self._context.jobs_dir / spare.folder)
        spare.allocation.release()
        spare.removed.set()

    async def _remove(self, spare: WarmContainer) -> None:
        """By its handle, or, where a start was not answered, by its folder's name."""
        if spare.handle is not None:
            return await self._context.engine.remove(spare.handle)
        for found in await self._context.engine.find(self._context.installation, self._context.host):
            if found.identity.spare == spare.folder:
                await self._context.engine.remove(found.handle)
        return None
