"""Warm containers that have loaded and wait, so that a job starts in milliseconds.

Each is used once, unless its endpoint has `[reuse]`: then it comes back after its job (`_keep`), until it has run
enough jobs, is too old, or a job has left something in it (`WarmPool._find_leak`). While a job runs, the next one is
started only if it fits beside the job; otherwise right after it.
If one dies while it loads, the next is started after a backoff, and the host reports the reason. A waiting container is
evicted for a job of another endpoint that needs its resources, and when the machine's owner uses the GPU.
"""

from collections import defaultdict
from contextlib import aclosing
from functools import partial
from itertools import count

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup
from msgspec.structs import replace

from bus.notifier import Notifier
from runner.claiming.schedulability import Schedulability, free_memory_mb
from runner.context import FailureBackoff, HostContext, RunnerContext
from runner.endpoints import LocalEndpoint, container_spec
from runner.engines.port import REUSE_ENV, WARM_ENV, ContainerIdentity, EngineError, OutputCursor
from runner.execution.disk_usage import find_excess
from runner.execution.verdict import IMAGE_FAULTS
from runner.execution.warm_container import (
    STATE_AFTER_READY,
    STATE_WHEN_GIVEN_BACK,
    STATE_WHEN_TAKEN,
    WARM_PREFIX,
    ContainerReuse,
    OutputRest,
    WarmContainer,
    WarmState,
    find_leak_in_use,
    find_leaked_file,
    job_folders,
    measure_baseline,
    parsed_lines,
)
from runner.gpu.allocator import GpuAllocation
from runner.gpu.placement import Placed
from schemas.backoff import Backoff
from schemas.container_protocol import ErrorLine, ExitCode, LogLine, OutputStream, ReadyLine, read_mark
from schemas.host import WarmPoolStatus


def _may_run(warm: WarmContainer, owner: str) -> bool:
    """Return whether a job of this owner may run in the container."""
    reuse = warm.endpoint.config.reuse
    return not warm.owner or warm.owner == owner or (reuse is not None and reuse.scope == "endpoint")


class WarmPool:
    """The warm containers of this host. `take` assigns one to a job; `run` replaces it."""

    def __init__(self, context: RunnerContext, host: HostContext, schedulability: Schedulability) -> None:
        self._context = context
        self._host = host
        self._schedulability = schedulability
        self._containers: list[WarmContainer] = []  # those that no job has
        self._reused: set[WarmContainer] = set()  # those that a job has, and that may come back
        self._tasks: TaskGroup | None = None
        backoff = Backoff(host.warm.backoff_s, host.warm.backoff_most_s)
        self._backoffs: defaultdict[str, FailureBackoff] = defaultdict(lambda: FailureBackoff(backoff))
        self._numbers = count(1)
        self._changed = Notifier()
        self._is_open = True

    @property
    def _endpoints(self) -> dict[str, LocalEndpoint]:
        """The endpoints that have warm containers, as they are now."""
        endpoints = self._host.endpoints.items() if self._host.warm.on else ()
        return {name: endpoint for name, endpoint in endpoints if endpoint.config.warm or endpoint.config.reuse}

    async def run(self) -> None:
        """Keep as many warm containers as are configured and as fit. Runs forever."""
        async with anyio.create_task_group() as self._tasks:
            while True:
                notification = self._changed.next_notification()
                if self._is_open:
                    self._evict_unfit()
                    await self._fill()
                with anyio.move_on_after(self._context.intervals.idle_s):
                    await notification.wait()

    def notify(self) -> None:
        """Check at once whether another container fits."""
        self._changed.notify()

    def take(self, endpoint: LocalEndpoint, owner: str) -> WarmContainer | None:
        """Take a container for the next job of this endpoint and owner, a ready one if possible; None without one."""
        for state, taken_state in STATE_WHEN_TAKEN.items():
            used_first = sorted(self._containers_of(endpoint, state), key=lambda warm: not warm.owner)
            for warm in used_first:
                if _may_run(warm, owner) and self._host.gpu_allocator.can_start(warm.allocation, endpoint.config):
                    self._containers.remove(warm)
                    warm.advance(taken_state)
                    self._lend(warm, owner)
                    return warm
        return None

    def serves(self, endpoint: LocalEndpoint) -> bool:
        """Return whether this endpoint has warm containers at all."""
        return endpoint.config.name in self._endpoints

    def start_reserved(self, endpoint: LocalEndpoint, uuids: tuple[str, ...], owner: str) -> WarmContainer | None:
        """Start a container for this job that later ones can use too; None if the endpoint does not reuse them."""
        if endpoint.config.reuse is None or endpoint.config.name not in self._endpoints or not self._is_open:
            return None
        if self._tasks is None:
            return None
        warm = self._make(endpoint, self._host.gpu_allocator.allocate(uuids, endpoint.config, is_idle=False))
        warm.advance(WarmState.RESERVED)
        self._lend(warm, owner)
        self._tasks.start_soon(self._run_container, warm)
        return warm

    def _lend(self, warm: WarmContainer, owner: str) -> None:
        if warm.reuse is not None:
            warm.owner = owner
            self._reused.add(warm)

    def _make(self, endpoint: LocalEndpoint, allocation: GpuAllocation) -> WarmContainer:
        folder = f"{WARM_PREFIX}{self._context.incarnation}-{next(self._numbers)}"
        warm = WarmContainer(folder, endpoint, allocation, number=1 if endpoint.config.reuse else 0)
        warm.reuse = ContainerReuse(self._find_leak, self._keep) if endpoint.config.reuse else None
        return warm

    async def _keep(self, warm: WarmContainer, rest: OutputRest, leak: str | None) -> bool:
        """Take a container back after its job; return False if it has to go."""
        self._reused.discard(warm)
        reason = leak or self._why_not_kept(warm)
        if reason is not None or self._tasks is None:
            endpoint = warm.endpoint.config.name
            self._context.log.info("container_not_kept", endpoint=endpoint, container=warm.folder, reason=reason)
            return False
        await warm.detach()
        warm.wait_for_next_job(rest)
        idle = self._containers_of(warm.endpoint)
        if len(idle) >= max(self._host.slots.count, self._host.warm.count):
            self._start_removal(idle[0])
        self._containers.append(warm)
        self._tasks.start_soon(self._run_container, warm)
        return True

    def _why_not_kept(self, warm: WarmContainer) -> str | None:
        """Return why the container may run no other job now, None if it may."""
        reuse = warm.endpoint.config.reuse
        is_current = self._host.endpoints.get(warm.endpoint.config.name) is warm.endpoint
        rules = (
            (not self._is_open, "the host is shutting down"),
            (not is_current, "its endpoint or its image has changed"),
            (reuse is None or warm.number >= reuse.jobs, "it has run as many jobs as [reuse] allows"),
            (anyio.current_time() >= warm.expires_at, "it is older than [reuse] allows"),
            (self._host.gpu_allocator.is_unfit(warm.allocation), "its GPU may not be used now"),
        )
        return next((why for applies, why in rules if applies), None)

    async def _find_leak(self, warm: WarmContainer) -> str | None:
        """Return what the last job left in the container, None if nothing. Make the folder of its next job."""
        try:
            leak = await find_leak_in_use(self._context.engine, warm)
            return leak or await anyio.to_thread.run_sync(self._find_leaked_file, warm)
        except (EngineError, OSError) as error:
            return str(error)

    def _find_leaked_file(self, warm: WarmContainer) -> str | None:
        """Look into the folders of the container, and make the next one there. Blocking."""
        folders = job_folders(self._context.jobs_dir / warm.folder, warm.number + 1)
        leak = find_leaked_file(warm, folders.root)
        if leak is None and self._context.folders is not None:
            leak = find_excess(self._context.folders.caches, folders.container)
        if leak is None:
            folders.job.mkdir()  # a name that the job has taken is a leak too
        return leak

    async def give_back(self, warm: WarmContainer) -> None:
        """Return a container that was taken and got no job. It waits on, unless it died or there are enough."""
        self._reused.discard(warm)
        idle_state = STATE_WHEN_GIVEN_BACK.get(warm.state)
        if idle_state and self._is_open and len(self._containers_of(warm.endpoint)) < self._host.warm.count:
            warm.advance(idle_state)
            self._containers.append(warm)
            return
        await warm.detach()
        warm.advance(WarmState.REMOVING)
        await self._remove(warm)
        self.notify()

    async def evict_for(self, allocation: GpuAllocation) -> None:
        """Remove the warm containers on these GPUs if the container of `allocation` would not fit beside them."""
        if self._host.gpu_allocator.must_evict_warm(allocation):
            await self._evict([warm for warm in self._containers if set(warm.allocation.uuids) & set(allocation.uuids)])

    async def evict_owner(self, owner: str) -> bool:
        """Remove the containers that wait for more jobs of this owner; return whether no job of it has one."""
        await self._evict([warm for warm in self._containers if warm.owner == owner])
        return not any(warm.owner == owner and not warm.allocation.is_released for warm in self._reused)

    async def close(self) -> None:
        """Remove all warm containers, and start no more."""
        self._is_open = False
        await self._evict(list(self._containers))

    def used_endpoints(self) -> list[LocalEndpoint]:
        """Return the endpoint of each container, as it was when the container started."""
        with_jobs = (warm for warm in self._reused if not warm.allocation.is_released)
        return [warm.endpoint for warm in (*self._containers, *with_jobs)]

    def reports(self) -> tuple[WarmPoolStatus, ...]:
        """Return the pools as the heartbeat shows them."""
        return tuple(self._report(name) for name in self._endpoints)

    def _report(self, name: str) -> WarmPoolStatus:
        endpoint, backoff, now = self._endpoints[name], self._backoffs[name], anyio.current_time()
        left_s = round(backoff.left_s(now), 1) if backoff.is_waiting(now) else None
        ready = len(self._containers_of(endpoint, WarmState.READY))
        loading = len(self._containers_of(endpoint, WarmState.LOADING))
        return WarmPoolStatus(name, ready, loading, backoff.reason or None, left_s)

    def _containers_of(self, endpoint: LocalEndpoint, state: WarmState | None = None) -> list[WarmContainer]:
        """Return the containers of an endpoint that no job has, in this state or in any, the oldest first."""
        return [warm for warm in self._containers if warm.endpoint is endpoint and state in {None, warm.state}]

    async def _evict(self, containers: list[WarmContainer]) -> None:
        for warm in containers:
            self._start_removal(warm)
        for warm in containers:
            await warm.wait_for(WarmState.REMOVED)

    def _evict_unfit(self) -> None:
        """Remove those whose GPU may not be used, and those of an endpoint or an image that has changed since."""
        for warm in self._containers:
            is_current = self._host.endpoints.get(warm.endpoint.config.name) is warm.endpoint
            if not is_current or self._host.gpu_allocator.is_unfit(warm.allocation):
                self._start_removal(warm)

    def _start_removal(self, warm: WarmContainer) -> None:
        """End the watch of a container that no job has. The task of the watch then removes the container."""
        if warm.state is not WarmState.REMOVING:
            warm.advance(WarmState.REMOVING)
            warm.stop_watching()

    async def _fill(self) -> None:
        """Start missing containers, one per endpoint at a time: each may use the resources that the next one needs."""
        self._reused = {warm for warm in self._reused if not warm.allocation.is_released}
        for name, endpoint in self._endpoints.items():
            if self._backoffs[name].is_waiting(anyio.current_time()) or not endpoint.config.warm:
                continue
            coming_back = sum(1 for warm in self._reused if warm.endpoint is endpoint)
            if len(self._containers_of(endpoint)) + coming_back < self._host.warm.count:
                allocation = await self._allocate(endpoint)
                if allocation is not None and not self._is_open:
                    allocation.release()
                elif allocation is not None and self._tasks is not None:
                    warm = self._make(endpoint, allocation)
                    self._containers.append(warm)
                    self._tasks.start_soon(self._run_container, warm)

    async def _allocate(self, endpoint: LocalEndpoint) -> GpuAllocation | None:
        """Reserve the GPUs of one more container if it fits beside everything else."""
        free_mb = await anyio.to_thread.run_sync(free_memory_mb)
        loading_mb = sum(
            warm.endpoint.config.resources.memory_mb for warm in self._containers if warm.state is WarmState.LOADING
        )
        if free_mb - loading_mb < endpoint.config.resources.memory_mb + self._host.warm.memory_reserve_mb:
            return None
        placed = await self._schedulability.place(endpoint, warm=True)
        if not isinstance(placed, Placed):
            return None
        return self._host.gpu_allocator.allocate(placed.uuids, endpoint.config, is_idle=True)

    async def _run_container(self, warm: WarmContainer) -> None:
        """Start one container and watch it. At the end, detach it if a job has it; otherwise remove it."""
        problem = ""
        with warm.watch_scope:
            try:
                await self._start_and_watch(warm)
            except (EngineError, OSError) as error:
                problem = str(error) or type(error).__name__
        if warm.rest is not None:  # the watch ended before it began
            await warm.rest.chunks.aclose()
        if problem:
            self._record_failure(warm.endpoint.config.name, problem)
        if warm.state in STATE_WHEN_GIVEN_BACK:
            warm.advance(WarmState.DETACHED)
        else:
            if warm.state is not WarmState.REMOVING:
                warm.advance(WarmState.REMOVING)
            await self._remove(warm)
        self.notify()

    def _record_failure(self, endpoint: str, problem: str) -> None:
        self._backoffs[endpoint].record_failure(problem, anyio.current_time())
        self._context.log.warning("warm_container_failed", endpoint=endpoint, error=problem)

    async def _start_and_watch(self, warm: WarmContainer) -> None:
        """Start the container, and follow it until it is too old. Raises EngineError if it fails.

        A reused container runs already, and is followed from the end of its last job.
        """
        if warm.handle is None:
            warm.handle = await self._start(warm)
            await warm.allocation.container_started(warm.handle)
        with anyio.move_on_after(self._host.warm.ready_s) as timeout:
            error_line = await self._follow(warm, warm.handle, timeout)
            await self._raise_exit(warm, warm.handle, error_line)
        if warm.state in STATE_AFTER_READY:
            raise EngineError(f"not ready after {self._host.warm.ready_s:.0f} s")

    async def _start(self, warm: WarmContainer) -> str:
        folders = job_folders(self._context.jobs_dir / warm.folder, warm.number)
        identity = ContainerIdentity(
            installation=self._context.installation, host=self._context.host, warm_dir=warm.folder
        )
        mounts = await self._context.mount_folders(warm.endpoint, warm.owner, folders.container)
        spec = container_spec(warm.endpoint, identity, folders.root.resolve(), warm.allocation.uuids, mounts)
        await anyio.to_thread.run_sync(partial(folders.job.mkdir, parents=True, exist_ok=True))
        reuse = {REUSE_ENV: "1"} if warm.number else {}
        spec = replace(spec, mps=warm.allocation.mps, env={**spec.env, WARM_ENV: "1", **reuse})
        return await self._context.engine.start(spec)

    async def _follow(self, warm: WarmContainer, handle: str, timeout: anyio.CancelScope) -> ErrorLine | None:
        """Read the output until the exit; return the last error line. Once it is ready, `timeout` limits its age."""
        error_line: ErrorLine | None = None
        rest, warm.rest = warm.rest, None
        silent_streams: set[OutputStream] = {"stdout", "stderr"} if warm.number else {"stdout"}  # not ready yet
        if rest is not None:
            silent_streams = {stream for stream in silent_streams if rest.ready.get(stream) != warm.number}
        chunks = rest.chunks if rest else self._context.engine.output(handle, None)
        async with aclosing(chunks), aclosing(parsed_lines(chunks)) as lines:
            if rest is not None and not silent_streams:
                await self._enter_ready(warm, handle, rest.cursor, timeout)
            async for line, cursor in lines:
                if isinstance(line.message, ErrorLine):
                    error_line = warm.redactor.redact_message(line.message)
                ready = read_mark(line) if warm.number else line.message
                if not isinstance(ready, ReadyLine) or ready.job != warm.number:
                    continue
                silent_streams.discard("stderr" if isinstance(line.message, LogLine) else "stdout")
                if not silent_streams:
                    await self._enter_ready(warm, handle, cursor, timeout)
        return error_line

    async def _enter_ready(
        self, warm: WarmContainer, handle: str, cursor: OutputCursor, timeout: anyio.CancelScope
    ) -> None:
        """Enter the state after a container that loaded has said that it is ready. Later lines change nothing."""
        if warm.state in STATE_AFTER_READY:
            await self._note_ready(warm, handle, cursor)
        if (ready_state := STATE_AFTER_READY.get(warm.state)) is not None:
            timeout.deadline = min(warm.expires_at, anyio.current_time() + self._host.warm.recycle_s)
            warm.advance(ready_state)
            self._backoffs[warm.endpoint.config.name].reset()

    async def _note_ready(self, warm: WarmContainer, handle: str, cursor: OutputCursor) -> None:
        """Note where the output of the next job begins; before the first job, what a job may leave."""
        if warm.number > 1:
            warm.since = cursor
        elif warm.endpoint.config.reuse is not None:
            warm.expires_at = anyio.current_time() + 60 * warm.endpoint.config.reuse.minutes
            root = job_folders(self._context.jobs_dir / warm.folder, warm.number).root
            warm.baseline = await measure_baseline(self._context.engine, handle, root)

    async def _raise_exit(self, warm: WarmContainer, handle: str, error_line: ErrorLine | None) -> None:
        """Raise EngineError for the exit of a container, which never exits while it waits."""
        exit_ = await self._context.engine.wait(handle)
        if warm.state is WarmState.ASSIGNED:
            return  # the job has ended before the watch was stopped
        reason = f"{error_line.code}: {error_line.message}" if error_line else f"it exited with code {exit_.code}"
        if exit_.code == ExitCode.GPU_UNUSABLE and (error_line is None or error_line.code not in IMAGE_FAULTS):
            warm.allocation.mark_faulty(reason)
        raise EngineError(f"the container died while it waited: {reason}")

    async def _remove(self, warm: WarmContainer) -> None:
        """Wait until the end of its last job is recorded; remove container and folder; then release the GPUs."""
        await warm.is_vacated.wait()
        if warm in self._containers:
            self._containers.remove(warm)
        await self._context.remove_container(warm.handle, lambda identity: identity.warm_dir == warm.folder)
        await self._context.delete_folder(self._context.jobs_dir / warm.folder)
        warm.allocation.release()
        warm.advance(WarmState.REMOVED)
