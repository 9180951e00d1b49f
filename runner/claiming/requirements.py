"""Which requirements of an endpoint this host does not meet, and will not meet until somebody changes it. Pure.

The host offers the endpoint nevertheless, with the reason. It is published with the capabilities, which outlive the
host: a host that is off is not woken for an endpoint that it cannot run.
"""

from collections.abc import Mapping

from runner.engines.port import EngineInfo
from runner.gpu.placement import NO_GPU_STATES, describe_unmet_cards
from schemas.endpoint import Endpoint
from schemas.gpu import GpuMonitorState, GpuSnapshot
from schemas.isolation import PROCESS_ISOLATION, SANDBOX_ISOLATION, RuntimeName
from schemas.requirements import describe_unmet_labels

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
        _describe_unmet_cards(endpoint, gpus),
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


def _describe_unmet_cards(endpoint: Endpoint, gpus: GpuSnapshot) -> str | None:
    """Return which cards the host lacks. GPUs that cannot be read now may be the required ones."""
    is_known = gpus.at > 0 and (gpus.state is GpuMonitorState.OK or gpus.state in NO_GPU_STATES)
    if not is_known or endpoint.resources.gpu_optional:
        return None
    return describe_unmet_cards(gpus, endpoint.resources, endpoint.cards)
