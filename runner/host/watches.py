"""Checks of this host that are repeated: its engine, GPUs that erred, folders of endpoints, and deleted owners.

While the engine does not answer, the host reports it and claims nothing: jobs wait in the queue, for this host or
another one. Running jobs are followed again as soon as the engine is back. No other engine replaces it.

A GPU that erred gets no job until a probe has succeeded on it. The probe is a container of an endpoint's own image. If
the endpoint supports warm containers, the probe loads its model and prints `ready`, which proves more than a test of
ours could. Otherwise it runs nvidia-smi, which the container toolkit provides.

The folders of the endpoints are read again every few seconds, so that a change needs no restart. A job that runs keeps
the endpoint with which it started. The warm pool removes containers of an endpoint that changed.

The edge writes a row of DELETED_OWNERS when an owner's jobs have ended. A host reads the rows before it claims its
first job, and again at every cleanup. It removes the owner's caches, and reused containers with them. What it has done
is in a file: the caches of a new owner of the same name stay.
"""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from datetime import datetime
from functools import partial
from itertools import count

import anyio
import anyio.to_thread
import msgspec
from msgspec.structs import replace

from bus.secret_files import TRAVERSE_ONLY_MODE, atomic_write, make_private_folder
from runner.assets.container_folders import CacheStore
from runner.assets.volume_store import read_mount_notes
from runner.claiming.schedulability import HostState
from runner.claiming.warm_pool import WarmPool
from runner.context import FailureBackoff, HostContext, RunnerContext
from runner.endpoints import LocalEndpoint, container_spec, load_endpoints
from runner.engines.port import (
    WARM_ENV,
    ContainerEngine,
    ContainerIdentity,
    ContainerSpec,
    DetectedInjection,
    EngineError,
)
from runner.execution.warm_container import WARM_PREFIX, parsed_lines
from runner.gpu.allocator import GpuAllocation
from schemas.backoff import Backoff
from schemas.container_protocol import ReadyLine
from schemas.endpoint import EndpointInvalid
from schemas.host import ENDPOINTS_TASK

FIRST_PROBE_TIMEOUT_S = 2.0  # the first heartbeat waits this long for the engine
PROBE_TIMEOUT_S = 20.0

PrepareEngine = Callable[[], Awaitable[DetectedInjection | None]]


class EngineMonitor:
    """Monitors the engine. `prepare` is called once, at its first answer; `injection` is the result."""

    def __init__(self, context: RunnerContext, state: HostState, prepare: PrepareEngine) -> None:
        self._context = context
        self._state = state
        self._prepare = prepare
        self._answered = anyio.Event()
        self._notes: tuple[str, ...] = ()  # limits that the engine does not enforce
        self.injection: DetectedInjection | None = None

    async def probe_once(self) -> None:
        """Probe once with a short timeout, so that the first heartbeat is right."""
        self._set_away(await self._probe(FIRST_PROBE_TIMEOUT_S))

    async def wait_until_ready(self) -> None:
        """Wait until the engine has answered once and is prepared."""
        await self._answered.wait()

    async def run(self) -> None:
        """Probe forever. An engine that is away is probed with a growing pause."""
        failures = 0
        while True:
            suspicion = self._context.outage.engine_suspected.next_notification()
            reason = await self._probe(PROBE_TIMEOUT_S)
            if reason is None and not self._answered.is_set():
                self.injection = await self._prepare()
                reason = await self._probe(PROBE_TIMEOUT_S)  # if the engine went away, the preparation proves nothing
                if reason is None:
                    self._answered.set()
                    for note in self._notes:
                        self._context.log.warning(
                            "engine_limitation_found", engine=self._context.engine.name, note=note
                        )
            self._set_away(reason)
            if reason is None:
                failures = 0
                with anyio.move_on_after(self._context.intervals.engine_s):
                    await suspicion.wait()
            else:
                await anyio.sleep(self._context.intervals.retry_backoff.delay_s(failures))
                failures += 1

    async def _probe(self, timeout_s: float) -> str | None:
        """Return why the engine does not answer, or None."""
        try:
            with anyio.fail_after(timeout_s):
                engine = await self._context.engine.probe()
            self._notes = engine.notes
            self._state.set_engine(engine)
        except (EngineError, TimeoutError) as error:
            return str(error) or f"silent for {timeout_s:.0f} s"
        return None

    def _set_away(self, reason: str | None) -> None:
        """Record whether the engine answers, and log a change."""
        if not self._state.set_engine_away(reason):
            return
        if reason is None:
            self._context.log.info("engine_recovered", engine=self._context.engine.name)
        else:
            self._context.log.warning("engine_lost", engine=self._context.engine.name, error=reason)


LIST_GPUS_COMMAND = ("nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader")


class GpuProber:
    """Probes such GPUs, one at a time; the backoff of a GPU doubles after each failure."""

    def __init__(self, context: RunnerContext, host: HostContext) -> None:
        self._context = context
        self._host = host
        self._endpoint = choose_probe_endpoint(host)
        settings = host.gpu_allocator.settings.probe
        self._backoff = Backoff(settings.first_s, settings.most_s)
        self._backoffs: dict[str, FailureBackoff] = {}
        self._numbers = count(1)

    async def run(self) -> None:
        """Run forever; return at once if no endpoint uses GPUs."""
        if self._endpoint is None:
            return
        while True:
            for uuid in self._host.gpu_allocator.probe_candidates():
                backoff = self._backoffs.setdefault(uuid, FailureBackoff(self._backoff))
                if not backoff.is_waiting(anyio.current_time()):
                    await self._probe(uuid, self._endpoint)
            await anyio.sleep(self._context.intervals.idle_s)

    async def _probe(self, uuid: str, endpoint: LocalEndpoint) -> None:
        allocator, backoff = self._host.gpu_allocator, self._backoffs[uuid]
        allocation = allocator.allocate((uuid,), endpoint.config)
        try:
            problem = await self._run_container(endpoint, allocation)
        finally:
            allocation.release()
        if allocation.xid is not None:
            problem = f"XID {allocation.xid} while it was probed"
        if not problem:
            backoff.reset()
            allocator.clear_fault(uuid)
            self._context.log.info("gpu_probe_succeeded", gpu=uuid)
            return
        backoff.record_failure(problem, anyio.current_time())
        allocator.mark_faulty((uuid,), f"its probe failed: {problem}")
        self._context.log.warning("gpu_probe_failed", gpu=uuid, error=problem)

    async def _run_container(self, endpoint: LocalEndpoint, allocation: GpuAllocation) -> str:
        """Run one container on the GPU; return what went wrong, or ""."""
        spec = probe_spec(self._context, endpoint, allocation.uuids, f"probe-{next(self._numbers)}")
        spec = replace(spec, env={**spec.env, WARM_ENV: "1"}, entrypoint_override=()) if endpoint.config.warm else spec
        return await run_probe(
            self._context, spec, allocation.container_started, self._host.gpu_allocator.settings.probe.patience_s
        )


async def run_probe(
    context: RunnerContext, spec: ContainerSpec, started: Callable[[str], Awaitable[object]], timeout_s: float
) -> str:
    """Run this container until it is ready or exits; return what went wrong, or "". It is removed in the end."""
    folder, handle = context.jobs_dir / spec.identity.folder, None
    try:
        await anyio.to_thread.run_sync(partial((folder / "job").mkdir, parents=True))
        handle = await context.engine.start(spec)
        await started(handle)
        with anyio.fail_after(timeout_s):
            return await _wait_for_success(context.engine, handle)
    except TimeoutError:
        return f"no answer within {timeout_s:.0f} s"
    except (EngineError, OSError) as error:
        return str(error)
    finally:
        if handle is not None:
            await context.retry_engine_call("remove", partial(context.engine.remove, handle))
        await context.delete_folder(folder)


async def _wait_for_success(engine: ContainerEngine, handle: str) -> str:
    """Wait until the container is ready or exits; return "" if it is ready or exits with 0, else the reason."""
    async with aclosing(parsed_lines(engine.output(handle, None))) as lines:
        async for line, _ in lines:
            if isinstance(line.message, ReadyLine):
                return ""
    exit_ = await engine.wait(handle)
    return "" if exit_.code == 0 else f"the container exited with code {exit_.code}"


def choose_probe_endpoint(host: HostContext) -> LocalEndpoint | None:
    """Return the endpoint whose image probes: one with warm containers, if there is one."""
    candidates = [endpoint for endpoint in host.endpoints.values() if endpoint.config.resources.gpus]
    return max(candidates, key=lambda endpoint: endpoint.config.warm, default=None)


def probe_spec(context: RunnerContext, endpoint: LocalEndpoint, uuids: tuple[str, ...], name: str) -> ContainerSpec:
    """Return the spec of a container of this endpoint that lists these GPUs and exits."""
    folder = f"{WARM_PREFIX}{context.incarnation}-{name}"
    identity = ContainerIdentity(installation=context.installation, host=context.host, warm_dir=folder)
    return replace(
        container_spec(endpoint, identity, (context.jobs_dir / folder / "job").resolve(), uuids),
        entrypoint_override=LIST_GPUS_COMMAND,
    )


# Which injection mode works depends on the toolkit, its mode and Docker's version, so each is tried at start with a
# container that lists the GPUs.

INJECTION_TIMEOUT_S = 60.0


async def detect_injection(context: RunnerContext, host: HostContext) -> DetectedInjection | None:
    """Make the engine use the first mode that works, and return it.

    Return None if the engine has no modes, if there are no GPUs, or if no endpoint uses one.
    """
    engine, allocator = context.engine, host.gpu_allocator
    endpoint = choose_probe_endpoint(host)
    uuids = tuple(sample.uuid for sample in allocator.snapshot.samples)
    if not engine.injection_modes or endpoint is None or not uuids:
        return None
    configured = allocator.settings.injection
    failures = {}
    for mode in engine.injection_modes if configured == "auto" else (configured,):
        engine.set_injection(mode)
        spec = probe_spec(context, endpoint, uuids, f"probe-{mode}")
        problem = await run_probe(context, spec, engine.pid, INJECTION_TIMEOUT_S)
        if not problem:
            context.log.info("gpu_injection_selected", mode=mode)
            return mode
        failures[mode] = problem
    context.log.error("gpu_injection_failed", remedy="install the NVIDIA container toolkit", **failures)
    return "none"


class EndpointWatch:
    """Keeps `HostContext.endpoints` as the folders have them. `changed` is called after each change."""

    def __init__(self, context: RunnerContext, host: HostContext, changed: Callable[[], None]) -> None:
        self._context = context
        self._host = host
        self._changed = changed

    async def run(self) -> None:
        """Look forever. While a file is not valid, the endpoints stay as they were, and the heartbeat says why."""
        while self._host.endpoint_folders:
            await anyio.sleep(self._context.intervals.image_s)
            if (problem := await self._look()) is not None:
                await self._report_until_valid(problem)

    async def _report_until_valid(self, problem: str) -> None:
        self._context.log.warning("endpoints_not_valid", error=problem)
        with self._context.outage.waiting() as report:
            current: str | None = problem
            while current is not None:
                report(False, f"{ENDPOINTS_TASK}: {current}")
                await anyio.sleep(self._context.intervals.image_s)
                current = await self._look()

    async def _look(self) -> str | None:
        """Read the folders and apply what changed; return what is not valid, or None."""
        try:
            found = await anyio.to_thread.run_sync(load_endpoints, self._host.endpoint_folders, self._host.pool)
        except (EndpointInvalid, OSError) as error:
            return str(error)
        wanted = {name: self._with_image(endpoint) for name, endpoint in found.items()}
        changed = [name for name, endpoint in wanted.items() if self._host.endpoints.get(name) != endpoint]
        removed = self._host.endpoints.keys() - wanted.keys()
        for name in changed:
            self._host.endpoints[name] = wanted[name]
        for name in removed:
            del self._host.endpoints[name]
        if changed or removed:
            self._context.log.info("endpoints_changed", changed=sorted(changed), removed=sorted(removed))
            self._changed()
        return None

    def _with_image(self, endpoint: LocalEndpoint) -> LocalEndpoint:
        """Return the endpoint with the image that is known. Only the process engine runs the folder's other files."""
        current = self._host.endpoints.get(endpoint.config.name)
        if current is None:
            return endpoint
        image = current.image if current.config.image == endpoint.config.image else None
        has_images = self._context.engine.images is not None
        if not has_images:
            return replace(endpoint, image=image)
        return replace(
            endpoint,
            image=image,
            network_image=current.network_image,
            stamp=current.stamp,
            folder_digest=current.folder_digest,
        )


DELETED_OWNERS_FILE = "deleted_owners.json"


class DeletedOwners:
    """Removes what this host keeps between the jobs of owners that were deleted."""

    def __init__(self, context: RunnerContext, warm_pool: WarmPool) -> None:
        self._context = context
        self._warm_pool = warm_pool
        self._done: dict[str, datetime] | None = None  # None: the file is not read yet

    async def apply(self) -> None:
        """Read the rows, and remove what is left of their owners. Raises BusError.

        What a job of such an owner uses stays until a later call: the job ends first.
        """
        folders = self._context.folders
        if folders is None:
            return
        rows = {owner: row.value.at for owner, row in (await self._context.bus.deleted_owners.rows()).items()}
        store = folders.caches
        try:
            before = self._done if self._done is not None else await anyio.to_thread.run_sync(_read_done, store)
            done = {owner: at for owner, at in before.items() if rows.get(owner) == at}
            for owner in sorted(rows.keys() - done.keys()):
                is_unused = await self._warm_pool.evict_owner(owner)
                is_empty = await anyio.to_thread.run_sync(self._remove_caches, store, owner)
                if is_unused and is_empty:
                    done[owner] = rows[owner]
            if done != before:
                await anyio.to_thread.run_sync(_write_done, store, done)
            self._done = done
        except OSError as error:
            self._context.log.warning("operation_failed", operation="remove_deleted_owners", error=str(error))

    def _remove_caches(self, store: CacheStore, owner: str) -> bool:
        """Remove the owner's caches that no container has; return whether none is left. Blocking."""
        with store.lock:
            used = {key for note in read_mount_notes(self._context.jobs_dir) for key in note.caches}
            found = [cache for cache in store.list() if cache.owner == owner]
            for cache in found:
                if cache.folder.name not in used:
                    store.remove(cache)
                    self._context.log.info("cache_swept", cache=cache.folder.name, reason="owner_deleted")
        return used.isdisjoint(cache.folder.name for cache in found)


def _read_done(store: CacheStore) -> dict[str, datetime]:
    """Return when the owners were deleted that are done here. Without the file, their caches are removed again."""
    try:
        return msgspec.json.decode((store.folder / DELETED_OWNERS_FILE).read_bytes(), type=dict[str, datetime])
    except (FileNotFoundError, msgspec.DecodeError):
        return {}


def _write_done(store: CacheStore, done: dict[str, datetime]) -> None:
    make_private_folder(store.folder, TRAVERSE_ONLY_MODE)
    atomic_write(store.folder / DELETED_OWNERS_FILE, msgspec.json.encode(done))
