"""Isolation of a job's container from its host: its runtime, and its network.

`runc` shares the kernel of the host. `runsc` (gVisor) answers system calls itself, in user space. `kata` runs each
container in a virtual machine of its own.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

RuntimeName = Literal["runc", "runsc", "kata"]
NetworkName = Literal["none", "egress"]
AllowedName = Annotated[
    str,
    Meta(
        pattern=r"^(\*\.)?([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?\.)*[A-Za-z][A-Za-z0-9-]*\Z",
        max_length=253,
        description='a host name, or all names below one, as in "*.example.com"',
    ),
]

# The names under which engines have them, the usual one first.
ENGINE_RUNTIME_NAMES: dict[RuntimeName, tuple[str, ...]] = {
    "runc": ("runc", "io.containerd.runc.v2"),
    "runsc": ("runsc", "io.containerd.runsc.v1"),
    "kata": ("kata", "kata-runtime", "io.containerd.kata.v2"),
}
PROCESS_ISOLATION = "process"  # of a job that runs without a container
SANDBOX_ISOLATION = "bubblewrap"  # of such a job in a sandbox


class EngineRuntime(Struct, frozen=True):
    """A runtime of an engine. `engine_name`: its name there. `has_gpu_support`: it can give containers GPUs."""

    name: RuntimeName
    engine_name: str
    has_gpu_support: bool = True


class EgressPolicy(Struct, frozen=True):
    """The way out of a container. `allow`: the names that it may reach; none: every public host."""

    allow: tuple[str, ...] = ()
