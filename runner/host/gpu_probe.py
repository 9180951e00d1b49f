"""A card that erred takes no work until a container has run well on it: this starts that container.

It is an endpoint's own image there. One that can be started ahead is: loading its model and saying `ready` proves
more than a test of ours could. For the others nvidia-smi, which the container toolkit brings along, opens the card.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import partial
from itertools import count
from typing import Literal, Protocol

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
    GpuInjection,
)
from runner.execution.warm_container import WARM_PREFIX
from runner.gpu.allocator import GpuAllocation
from runner.outage import FailureBackoff
from schemas.container_protocol import LineParser, ReadyLine

LIST_GPUS_COMMAND = ("nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader")


class GpuProber:
    """Looks for such cards, one at a time; after a failure each waits twice as long as before."""

    def __init__(self, life: RunnerContext, means: HostContext) -> None:
        self._context = life
        self._host = means
        self._endpoint = choose_probe_endpoint(means)
        self._backoffs: defaultdict[str, FailureBackoff] = defaultdict(FailureBackoff)
        self._numbers = count(1)

    async def run(self) -> None:
        """Without end; at once where no endpoint uses cards, as then nobody could tell."""
        if self._endpoint is None:
            return
        while True:
            for uuid in self._host.gpu_allocator.probe_candidates():
                if not self._backoffs[uuid].is_waiting(anyio.current_time()):
                    await self._probe(uuid, self._endpoint)
            await anyio.sleep(self._context.intervals.idle_s)

    async def _probe(self, uuid: str, kind: LocalEndpoint) -> None:
        cards, pause, policy = self._host.gpu_allocator, self._backoffs[uuid], self._host.gpu_allocator.settings.probe
        holding = cards.allocate((uuid,), kind.config)
        try:
            why = await self._run_container(kind, holding)
        finally:
            holding.release()
        if holding.xid is not None:
            why = f"XID {holding.xid} while it was probed"
        if not why:
            pause.reset()
            cards.clear_fault(uuid)
            self._context.log.info("card proved", gpu=uuid)
            return
        pause.record_failure(why, anyio.current_time(), policy.first_s, policy.most_s)
        cards.mark_faulty((uuid,), f"its probe failed: {why}")
        self._context.log.warning("card not proved", gpu=uuid, why=why)

    async def _run_container(self, kind: LocalEndpoint, holding: GpuAllocation) -> str:
        """Run one container on the card; why it did not do well, or ""."""
        spec = probe_spec(self._context, kind, holding.uuids, f"probe-{next(self._numbers)}")
        spec = replace(spec, env={WARM_ENV: "1"}, instead=()) if kind.config.warm else spec
        return await run_probe(
            self._context, spec, holding.container_started, self._host.gpu_allocator.settings.probe.patience_s
        )


async def run_probe(
    life: RunnerContext, spec: ContainerSpec, started: Callable[[str], Awaitable[object]], patience_s: float
) -> str:
    """Run this container until it is ready or ends; why it did not do well, or "". Nothing of it is left."""
    folder, handle = life.jobs_dir / spec.identity.folder, None
    try:
        await anyio.to_thread.run_sync(partial((folder / "job").mkdir, parents=True))
        handle = await life.engine.start(spec)
        await started(handle)
        with anyio.fail_after(patience_s):
            return await _wait_for_success(life.engine, handle)
    except TimeoutError:
        return f"no answer within {patience_s:.0f} s"
    except (EngineError, OSError) as error:
        return str(error)
    finally:
        if handle is not None:
            await life.retry_engine_call("remove", partial(life.engine.remove, handle))
        await life.delete_folder(folder)


async def _wait_for_success(engine: ContainerEngine, handle: str) -> str:
    """Ready, or ended with 0: ""."""
    parser = LineParser("stdout")
    async with aclosing(engine.output(handle, None)) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            if chunk.stream == "stdout":
                for parsed in parser.feed(chunk.data, chunk.cursor.offset - len(chunk.data)):
                    if isinstance(parsed.message, ReadyLine):
                        return ""
    ended = await engine.wait(handle)
    return "" if ended.code == 0 else f"the container ended with code {ended.code}"


def choose_probe_endpoint(means: HostContext) -> LocalEndpoint | None:
    """The kind whose image probes: one that can be started ahead, if there is one."""
    using = [kind for kind in means.endpoints.values() if kind.config.resources.gpus]
    return max(using, key=lambda kind: kind.config.warm, default=None)


def probe_spec(life: RunnerContext, kind: LocalEndpoint, uuids: tuple[str, ...], name: str) -> ContainerSpec:
    """A container of this kind's image that opens these cards and ends."""
    folder = f"{WARM_PREFIX}{life.incarnation}-{name}"
    mine = ContainerIdentity(installation=life.installation, host=life.host, spare=folder)
    return replace(
        container_spec(kind, mine, (life.jobs_dir / folder / "job").resolve(), uuids), instead=LIST_GPUS_COMMAND
    )


# MERGED runner/injection.py: How the engine gives cards to containers on this host: each way is tried at start with a
# container that lists them. / Which one works depends on the toolkit, its mode and Docker's age (research/runner.md
# 1.5): nothing tells but trying.


INJECTION_MODES: Mapping[GpuInjection | Literal["auto"], tuple[GpuInjection, ...]] = {
    "auto": ("cdi", "device_request", "runtime"),
    "cdi": ("cdi",),
    "device_request": ("device_request",),
    "runtime": ("runtime",),
}
INJECTION_TIMEOUT_S = 60.0


class InjectionEngine(Protocol):
    """An engine that knows several ways."""

    def set_injection(self, way: GpuInjection) -> None:
        """Give cards to containers in this way from now on."""
        ...


async def detect_injection(
    life: RunnerContext, means: HostContext, engine: InjectionEngine
) -> DetectedInjection | None:
    """Have `engine` use the first way that works, and say so; None where there is no card, or nothing uses one."""
    kind = choose_probe_endpoint(means)
    uuids = tuple(sample.uuid for sample in means.gpu_allocator.snapshot.samples)
    if kind is None or not uuids:
        return None
    failures = {}
    for way in INJECTION_MODES[means.gpu_allocator.settings.injection]:
        engine.set_injection(way)
        why = await run_probe(
            life, probe_spec(life, kind, uuids, f"probe-{way}"), means.gpu_allocator.pid_of, INJECTION_TIMEOUT_S
        )
        if not why:
            life.log.info("cards are given to containers", way=way)
            return way
        failures[way] = why
    life.log.error("cards cannot be given to containers: install the NVIDIA container toolkit", **failures)
    return "none"
