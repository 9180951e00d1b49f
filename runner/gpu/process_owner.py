"""Whose process is it? From what /proc says to "one of our jobs" or "someone else's"."""

import re
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from schemas.gpu import GpuProcess

# A container's id is 64 hex digits, wherever the cgroup driver puts it:
#   v1 cgroupfs  4:memory:/docker/<id>                 v1 systemd  4:memory:/system.slice/docker-<id>.scope
#   v2           0::/system.slice/docker-<id>.scope    Kubernetes  0::/kubepods.slice/.../cri-containerd-<id>.scope
_CONTAINER = re.compile(r"(?:^|[/-])([0-9a-f]{64})(?:\.scope)?(?=/|$)", re.MULTILINE)
_ANCESTOR_LIMIT = (
    64  # ancestors looked at; a chain longer than this is a loop caused by pids that were reused meanwhile
)

ProcReader = Callable[[int, str], str | None]
"""Reads /proc/PID/NAME; None where there is no such process or it is hidden."""


class OwnProcesses(Struct, frozen=True):
    """What this runner has started: containers by id, process jobs by pid, and the cards that they were given."""

    containers: frozenset[str] = frozenset()
    pids: frozenset[int] = frozenset()
    gpus: frozenset[str] = frozenset()


NO_PROCESSES = OwnProcesses()


def parse_container_ids(cgroup: str) -> tuple[str, ...]:
    """The container ids in the text of /proc/PID/cgroup (v1 or v2), outermost first, each once.

    Several where containers are nested: ours may be the outer (an image that starts its own) or the inner one
    (a runner that is itself in a container).
    """
    return tuple(dict.fromkeys(_CONTAINER.findall(cgroup)))


def parse_parent_pid(stat: str) -> int:
    """The parent's pid in the text of /proc/PID/stat. The name may hold spaces and brackets, so count from its end."""
    return int(stat.rpartition(")")[2].split()[1])


def read_proc(pid: int, name: str) -> str | None:
    """The real `Proc`."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def trace_process(process: GpuProcess, proc: ProcReader = read_proc) -> GpuProcess:
    """The same process with its container and ancestors filled in."""
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


def is_own(process: GpuProcess, ours: OwnProcesses) -> bool:
    """Whether the process is of one of these containers, or one of these pids or its descendant."""
    if not ours.containers.isdisjoint(process.containers):
        return True
    return not ours.pids.isdisjoint((process.pid, *process.ancestors))


def is_foreign(process: GpuProcess, uuid: str, ours: OwnProcesses) -> bool:
    """Whether someone else runs on card `uuid`.

    A process that /proc does not show is given the benefit of the doubt while one of our jobs holds the card: inside
    a container NVML still gives host pids, and our own job would look like a stranger.
    """
    if is_own(process, ours):
        return False
    return process.seen or uuid not in ours.gpus
