"""What a host lacks for an endpoint: the engine's runtimes. GPUs and labels: test_host.py, test_gpu_placement.py."""

import pytest

from runner.claiming.schedulability import describe_unmet
from runner.engines.port import EngineInfo
from schemas.endpoint import Endpoint, EndpointInvalid, Resources, parse_endpoint
from schemas.endpoint_parts import EngineRuntime, RuntimeName
from schemas.gpu import GpuMonitorState, GpuSnapshot

NO_GPUS = GpuSnapshot(state=GpuMonitorState.NONE, at=1)
DOCKER = EngineInfo("docker", "28", isolated=True, runtimes=(EngineRuntime("runc", "runc"),), isolation="runc")
GVISOR = EngineInfo("docker", "28", isolated=True, runtimes=(EngineRuntime("runsc", "runsc", has_gpu_support=False),))
PROCESS = EngineInfo("process", "3", isolated=False)


@pytest.mark.parametrize(
    ("runtime", "gpus", "engine", "lacks"),
    [
        (None, 1, PROCESS, None),
        ("runc", 0, DOCKER, None),
        ("runsc", 0, None, None),  # the engine has not answered yet
        ("runsc", 0, GVISOR, None),
        (
            "runsc",
            0,
            DOCKER,
            "runtime runsc (its engine does not have it: install gVisor there, then run: runsc install",
        ),
        ("kata", 0, GVISOR, "runtime kata (its engine does not have it: install Kata Containers there"),
        (
            "runsc",
            1,
            GVISOR,
            "runtime runsc with a GPU (register it with GPU support there: runsc install -- --nvproxy",
        ),
        ("runsc", 0, PROCESS, "runtime runsc (it runs jobs as plain processes: install Docker there"),
    ],
)
def test_a_runtime_that_the_engine_lacks_is_named_with_what_to_do(
    runtime: RuntimeName | None, gpus: int, engine: EngineInfo | None, lacks: str | None
) -> None:
    endpoint = Endpoint(name="x", image="x", runtime=runtime, resources=Resources(gpus=gpus))
    found = describe_unmet(endpoint, {}, NO_GPUS, engine)
    assert (found is None) if lacks is None else (found or "").startswith(lacks)


def test_a_runtime_that_does_not_exist_is_refused() -> None:
    with pytest.raises(EndpointInvalid, match='runtime is "gvisor": it must be kata, runc or runsc'):
        parse_endpoint('name = "x"\nimage = "x"\nruntime = "gvisor"\n')
