"""Containers that test GPUs: a probe of a GPU that erred, and the trial of the injection modes at start.

A GPU that erred gets no job until a probe has succeeded on it. The probe is a container of an endpoint's own image. If
the endpoint supports warm containers, the probe loads its model and prints `ready`, which proves more than a test of
ours could. Otherwise it runs nvidia-smi, which the container toolkit provides.
"""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from itertools import count

import anyio
import anyio.to_thread
from msgspec.structs import replace

from runner.context import HostContext, RunnerContext
from runner.endpoints import LocalEndpoint, container_spec
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
from runner.outage import FailureBackoff
from schemas.backoff import Backoff
from schemas.container_protocol import ReadyLine

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
