"""Owner of a GPU process: one of our containers, or a foreign program. Decided by /proc."""

import re
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from schemas.gpu import GpuProcess

# A container's id is 64 hex digits, wherever the cgroup driver puts it:
#   v1 cgroupfs  4:memory:/docker/<id>                 v1 systemd  4:memory:/system.slice/docker-<id>.scope
#   v2           0::/system.slice/docker-<id>.scope    Kubernetes  0::/kubepods.slice/.../cri-containerd-<id>.scope
_CONTAINER = re.compile(r"(?:^|[/-])([0-9a-f]{64})(?:\.scope)?(?=/|$)", re.MULTILINE)
_ANCESTOR_LIMIT = 64  # a longer chain is a loop, caused by pids that were reused while it was read

ProcReader = Callable[[int, str], str | None]
"""Returns the content of /proc/PID/NAME; None if the process does not exist or is hidden."""


class OwnProcesses(Struct, frozen=True):
    """Identifiers of what this runner has started: container ids, pids of the process engine, and their GPUs."""

    containers: frozenset[str] = frozenset()
    pids: frozenset[int] = frozenset()
    gpus: frozenset[str] = frozenset()


NO_PROCESSES = OwnProcesses()


def parse_container_ids(cgroup: str) -> tuple[str, ...]:
    """Return the container ids in the text of /proc/PID/cgroup (v1 or v2), outermost first, each once.

    Nested containers give several ids. Ours may be the outer one (an image that starts containers) or the inner one (a
    runner that is itself in a container).
    """
    return tuple(dict.fromkeys(_CONTAINER.findall(cgroup)))


def parse_parent_pid(stat: str) -> int:
    """Return the parent's pid in the text of /proc/PID/stat.

    The name may hold spaces and brackets, so count from its end.
    """
    return int(stat.rpartition(")")[2].split()[1])


def read_proc(pid: int, name: str) -> str | None:
    """Read a file of the real /proc."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def trace_process(process: GpuProcess, proc: ProcReader = read_proc) -> GpuProcess:
    """Return the same process with its containers and ancestors filled in."""
    cgroup = proc(process.pid, "cgroup")
    return GpuProcess(
        pid=process.pid,
        used_mb=process.used_mb,
        graphics=process.graphics,
        containers=parse_container_ids(cgroup or ""),
        ancestors=_ancestors(process.pid, proc),
        seen=cgroup is not None,
    )


def _ancestors(pid: int, proc: ProcReader) -> tuple[int, ...]:
    chain: list[int] = []
    while (
        len(chain) < _ANCESTOR_LIMIT and (stat := proc(pid, "stat")) is not None and (pid := parse_parent_pid(stat)) > 0
    ):
        chain.append(pid)
    return tuple(chain)


def is_own(process: GpuProcess, own: OwnProcesses) -> bool:
    """Return whether the process belongs to one of these containers or pids, or descends from one of the pids."""
    if not own.containers.isdisjoint(process.containers):
        return True
    return not own.pids.isdisjoint((process.pid, *process.ancestors))


def is_foreign(process: GpuProcess, uuid: str, own: OwnProcesses) -> bool:
    """Return whether the process is foreign on the GPU `uuid`.

    A process that /proc does not show counts as ours while one of our jobs has the GPU. If the runner is in a
    container, NVML still reports host pids, and our own job would look foreign.
    """
    if is_own(process, own):
        return False
    return process.seen or uuid not in own.gpus
