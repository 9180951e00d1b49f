"""Which requirements of an endpoint this host does not meet, and will not meet until somebody changes it. Pure.

The host offers the endpoint nevertheless, with the reason. It is published with the capabilities, which outlive the
host: a host that is off is not woken for an endpoint that it cannot run.
"""

from collections.abc import Mapping

from runner.gpu.placement import NO_GPU_STATES, describe_unmet_cards
from schemas.endpoint import Endpoint
from schemas.gpu import GpuMonitorState, GpuSnapshot
from schemas.requirements import describe_unmet_labels


def describe_unmet(endpoint: Endpoint, labels: Mapping[str, str], gpus: GpuSnapshot) -> str | None:
    """Return what the host lacks, or None if it lacks nothing."""
    lacking = (describe_unmet_labels(endpoint.labels, labels), _describe_unmet_cards(endpoint, gpus))
    return ", ".join(filter(None, lacking)) or None


def _describe_unmet_cards(endpoint: Endpoint, gpus: GpuSnapshot) -> str | None:
    """Return which cards the host lacks. GPUs that cannot be read now may be the required ones."""
    is_known = gpus.at > 0 and (gpus.state is GpuMonitorState.OK or gpus.state in NO_GPU_STATES)
    if not is_known or endpoint.resources.gpu_optional:
        return None
    return describe_unmet_cards(gpus, endpoint.resources, endpoint.cards)
