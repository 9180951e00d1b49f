"""Which endpoints can start on this host now, and why the others cannot.

An endpoint may have a requirement that this host does not meet, and will not meet until somebody changes it. The host
offers the endpoint nevertheless, with the reason. It is published with the capabilities, which outlive the host: a host
that is off is not woken for an endpoint that it cannot run.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.to_thread

from bus.notifier import Notifier
from runner.claiming.volumes import HostContents
from runner.endpoints import LocalEndpoint
from runner.engines.port import MIB, EngineInfo
from runner.execution.execution import Execution
from runner.execution.verdict import ClassifiedFailure, Done
from runner.gpu.allocator import GpuAllocator
from runner.gpu.placement import NO_GPU_STATES, Placed, Unplaceable, describe_unmet_gpus
from runner.host_facts import HostEnd, TimeLeft
from schemas.endpoint import Endpoint
from schemas.endpoint_parts import PROCESS_ISOLATION, SANDBOX_ISOLATION, RuntimeName, describe_unmet_labels
from schemas.gpu import GpuMonitorState, GpuSnapshot
from schemas.job import WaitReason

RUNTIME_FIXES: Mapping[RuntimeName, str] = {
    "runc": "install runc there",
    "runsc": "install gVisor there, then run: runsc install && systemctl restart docker",
    "kata": "install Kata Containers there, add the runtime kata to Docker's daemon.json, and restart Docker",
}
GPU_FIXES: Mapping[RuntimeName, str] = {
    "runc": "",
    "runsc": "register it with GPU support there: runsc install -- --nvproxy && systemctl restart docker",
    "kata": "Docker gives Kata containers no GPU: use runsc or runc",
}


def describe_unmet(
    endpoint: Endpoint, labels: Mapping[str, str], gpus: GpuSnapshot, engine: EngineInfo | None
) -> str | None:
    """Return what the host lacks, or None if it lacks nothing. `engine`: None before it has answered."""
    lacking = (
        describe_unmet_labels(endpoint.labels, labels),
        _describe_unmet_gpus(endpoint, gpus),
        _describe_unmet_runtime(endpoint, engine) if engine is not None else None,
        _describe_unmet_network(endpoint, engine) if engine is not None else None,
    )
    return ", ".join(filter(None, lacking)) or None


def _describe_unmet_runtime(endpoint: Endpoint, engine: EngineInfo) -> str | None:
    """Return why the engine cannot run the endpoint with its runtime, and what to do."""
    wanted = endpoint.runtime
    if wanted is None:
        return None
    if not engine.isolated:
        return f"runtime {wanted} (it runs jobs as plain processes: install Docker there and set engine = docker)"
    found = next((runtime for runtime in engine.runtimes if runtime.name == wanted), None)
    if found is None:
        return f"runtime {wanted} (its engine does not have it: {RUNTIME_FIXES[wanted]})"
    if endpoint.resources.gpus and not endpoint.resources.gpu_optional and not found.has_gpu_support:
        return f"runtime {wanted} with a GPU ({GPU_FIXES[wanted]})"
    return None


def _describe_unmet_network(endpoint: Endpoint, engine: EngineInfo) -> str | None:
    """Return why the engine cannot give the endpoint a way out, and what to do."""
    if endpoint.egress is None:
        return None
    if not engine.has_egress:
        return "network egress (its engine gives jobs no proxy: offer the endpoint on a host with Docker)"
    if endpoint.runtime is None and engine.isolation not in {"runc", PROCESS_ISOLATION, SANDBOX_ISOLATION}:
        return f'network egress (its default runtime is {engine.isolation}: set runtime = "runc" in endpoint.toml)'
    return None


def _describe_unmet_gpus(endpoint: Endpoint, gpus: GpuSnapshot) -> str | None:
    """Return which GPUs the host lacks. GPUs that cannot be read now may be the required ones."""
    is_known = gpus.at > 0 and (gpus.state is GpuMonitorState.OK or gpus.state in NO_GPU_STATES)
    if not is_known or endpoint.resources.gpu_optional:
        return None
    return describe_unmet_gpus(gpus, endpoint.resources, endpoint.required_gpu)


class _DiskMeasurement(NamedTuple):
    """Free MiB on the disk, and the time of the measurement (seconds of the loop's clock)."""

    mb: int
    at: float


DISK_MEASUREMENT_MAX_AGE_S = 5.0  # so that a claim need not wait: the heartbeat measures more often


class HostState:
    """The labels of this host, and what changes while it runs. Every change is notified and reported at once."""

    def __init__(self, labels: Mapping[str, str] | None = None, end: HostEnd | None = None) -> None:
        self.labels = labels or {}
        self.time_left = TimeLeft(end)  # it only shrinks, and is reported with the next heartbeat
        self.is_recovered = False  # recovery has dealt with what earlier runner processes left
        self.is_draining = False  # the runner shuts down
        self.is_paused = False  # the edge's power control lets this host claim nothing
        self.is_in_maintenance = False  # an operator lets this host claim nothing
        self.paused_endpoints: frozenset[str] = frozenset()  # an operator lets no host claim jobs of these
        self.engine: EngineInfo | None = None  # the engine as it last answered
        self.engine_away: str | None = None  # why the engine does not answer; None while it does
        self.changed = Notifier()

    def set_recovered(self) -> None:
        """Record that recovery is complete."""
        self.is_recovered = True
        self.changed.notify()

    def set_draining(self) -> None:
        """Record that the runner shuts down."""
        self.is_draining = True
        self.changed.notify()

    def set_paused(self, paused: bool) -> bool:
        """Record whether the host may claim; return whether that changed."""
        if paused == self.is_paused:
            return False
        self.is_paused = paused
        self.changed.notify()
        return True

    def set_pauses(self, endpoints: frozenset[str], *, is_in_maintenance: bool) -> bool:
        """Record which endpoints are paused, and whether the host is in maintenance; return whether that changed."""
        if (endpoints, is_in_maintenance) == (self.paused_endpoints, self.is_in_maintenance):
            return False
        self.paused_endpoints, self.is_in_maintenance = endpoints, is_in_maintenance
        self.changed.notify()
        return True

    def set_engine(self, engine: EngineInfo) -> None:
        """Record what the engine can do. It may have been changed while it was away."""
        if engine != self.engine:
            self.engine = engine
            self.changed.notify()

    def set_engine_away(self, reason: str | None) -> bool:
        """Record why the engine does not answer, None if it does; return whether it went away or came back."""
        has_changed = (reason is None) != (self.engine_away is None)
        self.engine_away = reason
        if has_changed:
            self.changed.notify()
        return has_changed


class Schedulability:
    """Asked before every claim and for every heartbeat. `jobs_dir` is the folder that jobs write to."""

    def __init__(
        self,
        endpoints: Mapping[str, LocalEndpoint],
        gpu_allocator: GpuAllocator,
        jobs_dir: Path,
        contents: HostContents,
        state: HostState,
    ) -> None:
        self._endpoints = endpoints
        self._gpu_allocator = gpu_allocator
        self._jobs_dir = jobs_dir
        self._contents = contents
        self._disk_measurement = _DiskMeasurement(0, float("-inf"))
        self._state = state

    async def unschedulable_reasons(self, *, measure_disk: bool = False) -> dict[str, WaitReason]:
        """Return the reason for every endpoint that cannot start now. `measure_disk` forces a new measurement."""
        free_mb = await self._measure_disk_mb(0.0 if measure_disk else DISK_MEASUREMENT_MAX_AGE_S)
        placements = {name: self._place(endpoint, free_mb) for name, endpoint in self._endpoints.items()}
        return {name: placement.reason for name, placement in placements.items() if isinstance(placement, Unplaceable)}

    def unmet_requirements(self) -> dict[str, str]:
        """Return what this host lacks for every endpoint that it cannot run as it is."""
        unmet = {name: self._describe_unmet(endpoint) for name, endpoint in self._endpoints.items()}
        return {name: text for name, text in unmet.items() if text is not None}

    def _describe_unmet(self, endpoint: LocalEndpoint) -> str | None:
        return describe_unmet(endpoint.config, self._state.labels, self._gpu_allocator.snapshot, self._state.engine)

    def isolation_of(self, endpoint: LocalEndpoint) -> str:
        """Return what isolates the containers of this endpoint: a runtime, or `process` for none."""
        default = self._state.engine.isolation if self._state.engine is not None else PROCESS_ISOLATION
        return endpoint.config.runtime or default

    async def place(
        self, endpoint: LocalEndpoint, *, warm: bool = False, limit_s: float | None = None
    ) -> Placed | Unplaceable:
        """Return the GPUs that a container of this endpoint would get now.

        `warm`: it starts before its job. `limit_s`: how long its job may run; None: `base_s`.
        """
        free_mb = await self._measure_disk_mb(DISK_MEASUREMENT_MAX_AGE_S)
        return self._place(endpoint, free_mb, warm=warm, limit_s=limit_s)

    def learn_from(self, execution: Execution) -> None:
        """Note how long a job ran, and a missing image: its endpoint is not claimed until the image is there.

        Of an adopted job only the rest ran under this process, so its time is not noted.
        """
        if isinstance(execution.verdict, Done) and not execution.is_adopted:
            endpoint = execution.assignment.endpoint.config.name
            self._state.time_left.note_run(endpoint, anyio.current_time() - execution.began_at)
        if isinstance(execution.verdict, ClassifiedFailure) and execution.verdict.code == "image_missing":
            self._contents.images.note_missing(execution.assignment.endpoint)

    async def _measure_disk_mb(self, max_age_s: float) -> int:
        if anyio.current_time() - self._disk_measurement.at > max_age_s:
            self._disk_measurement = _DiskMeasurement(
                await anyio.to_thread.run_sync(free_disk_mb, self._jobs_dir), anyio.current_time()
            )
        return self._disk_measurement.mb

    def _place(
        self, endpoint: LocalEndpoint, free_mb: int, *, warm: bool = False, limit_s: float | None = None
    ) -> Placed | Unplaceable:
        if (paused := self._why_paused(endpoint)) is not None:
            return paused
        if (unmet := self._describe_unmet(endpoint)) is not None:
            return Unplaceable(WaitReason.REQUIREMENT_UNMET, unmet)
        config = endpoint.config
        if (late := self._state.time_left.why_too_late(config.name, limit_s or config.timeouts.base_s)) is not None:
            return Unplaceable(WaitReason.HOST_ENDING, late)
        if self._state.engine_away is not None:
            return Unplaceable(WaitReason.ENGINE_AWAY, self._state.engine_away)
        if (incomplete := self._contents.why_unplaceable(endpoint)) is not None:
            return incomplete
        return self._gpu_allocator.place(endpoint.config, free_mb, warm=warm)

    def _why_paused(self, endpoint: LocalEndpoint) -> Unplaceable | None:
        if self._state.is_paused:
            return Unplaceable(WaitReason.PAUSED, "the host is being powered off")
        if self._state.is_in_maintenance:
            return Unplaceable(WaitReason.HOST_IN_MAINTENANCE, "an operator has put the host into maintenance")
        if endpoint.config.name in self._state.paused_endpoints:
            return Unplaceable(WaitReason.ENDPOINT_PAUSED, "an operator has paused the endpoint")
        return None


def free_memory_mb() -> int:
    """Return the MiB of memory that could be used without swapping (MemAvailable of proc(5))."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) // 1024


def free_disk_mb(folder: Path) -> int:
    """Return the free MiB on the disk of `folder`."""
    return shutil.disk_usage(folder).free // MIB
