"""How the container of a job is isolated from its host: the runtime of an endpoint, and the runtimes of an engine.

`runc` shares the kernel of the host. `runsc` (gVisor) answers system calls itself, in user space. `kata` runs each
container in a virtual machine of its own.
"""

from typing import Literal

from msgspec import Struct

RuntimeName = Literal["runc", "runsc", "kata"]

# The names under which engines have them, the usual one first.
ENGINE_RUNTIME_NAMES: dict[RuntimeName, tuple[str, ...]] = {
    "runc": ("runc", "io.containerd.runc.v2"),
    "runsc": ("runsc", "io.containerd.runsc.v1"),
    "kata": ("kata", "kata-runtime", "io.containerd.kata.v2"),
}
PROCESS_ISOLATION = "process"  # of a job that runs without a container


class EngineRuntime(Struct, frozen=True):
    """A runtime of an engine. `engine_name`: its name there. `has_gpu_support`: it can give containers GPUs."""

    name: RuntimeName
    engine_name: str
    has_gpu_support: bool = True
