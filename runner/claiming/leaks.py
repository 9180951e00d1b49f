"""Find what a job has left in a reused container: processes, files outside its own folder, memory.

Measured before the first job and after each one. A container in which something was left runs no other job.
Memory, and files in /tmp and /dev/shm, may stay from the first job: libraries keep caches there. The files may not
where the next job may be of another owner.
"""

import os
from pathlib import Path

import anyio.to_thread

from runner.engines.port import MIB, ContainerEngine
from runner.execution.warm_container import ContainerBaseline, WarmContainer

MEMORY_SHARE = 0.25  # of the endpoint's memory_mb, by which memory may grow after the first job


async def measure_baseline(engine: ContainerEngine, handle: str, root: Path) -> ContainerBaseline:
    """Measure a container that has loaded and has run no job. Raises EngineError, OSError."""
    return ContainerBaseline(await engine.usage(handle), await anyio.to_thread.run_sync(_list_files, root))


async def find_leak_in_use(engine: ContainerEngine, warm: WarmContainer) -> str | None:
    """Return what the last job left in processes, memory and scratch files; None if nothing. Raises EngineError."""
    if warm.baseline is None or warm.handle is None:
        return "it was not measured before its first job"
    usage, before = await engine.usage(warm.handle), warm.baseline.usage
    if warm.first_usage is None:
        warm.first_usage = usage
    first = warm.first_usage
    grown = usage.memory_bytes + usage.scratch_bytes - first.memory_bytes - first.scratch_bytes
    reuse = warm.endpoint.config.reuse
    allowed = (before if reuse is not None and reuse.scope == "endpoint" else first).scratch_files
    if usage.processes > before.processes:
        return f"a job left processes: {usage.processes}, before the first job {before.processes}"
    if usage.scratch_files > allowed:
        return f"a job left files in /tmp or /dev/shm: {usage.scratch_files - allowed} more than allowed"
    if grown > MEMORY_SHARE * warm.endpoint.config.resources.memory_mb * MIB:
        return f"its memory has grown by {grown // MIB} MiB since its first job"
    return None


def find_leaked_file(warm: WarmContainer, root: Path) -> str | None:
    """Return a file that the last job left outside its folder, None without one. Blocking. Raises OSError."""
    left = _list_files(root) - (warm.baseline.files if warm.baseline else frozenset())
    return f"a job left files outside its folder, such as {min(left)!r}" if left else None


def _list_files(root: Path) -> frozenset[str]:
    """Return what is in the folder that the container sees as /job, without the folders of jobs and the sockets."""
    found: set[str] = set()
    for entry in os.scandir(root):
        if entry.name in {"in", "out", "tmp"} and entry.is_dir(follow_symlinks=False):
            found |= {f"{entry.name}/{inner.name}" for inner in os.scandir(entry)}
        elif not entry.name.isdigit() and not entry.name.endswith(".sock"):
            found.add(entry.name)
    return frozenset(found)
