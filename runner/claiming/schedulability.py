"""Which endpoints can start on this host now, and why the others cannot."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.to_thread

from runner.endpoints import LocalEndpoint
from runner.execution.execution import Execution
from runner.execution.verdict import ClassifiedFailure
from runner.gpu.allocator import GpuAllocator
from runner.gpu.placement import Placed, Unplaceable
from schemas.status import WaitReason


class _DiskMeasurement(NamedTuple):
    """MiB free on the disk, and when that was (seconds of the loop's clock)."""

    mb: int
    at: float


DISK_MEASUREMENT_MAX_AGE_S = (
    5.0  # a measure of the disk this old still counts: a claim waits for none, the heartbeat takes them
)


class Schedulability:
    """Asked before every claim and for every heartbeat. `disk` is the folder that jobs write to."""

    def __init__(
        self, kinds: Mapping[str, LocalEndpoint], cards: GpuAllocator, disk: Path, image_missing_s: float
    ) -> None:
        self._endpoints = kinds
        self._gpu_allocator = cards
        self._jobs_dir = disk
        self._image_missing_s = image_missing_s
        self._disk_measurement = _DiskMeasurement(0, float("-inf"))
        self._without_image: dict[str, float] = {}
        self.is_paused = False  # the edge's power law lets this host take nothing new
        self.engine_away: str | None = None  # why the engine does not answer, None while it does

    async def unschedulable_reasons(self, *, anew: bool = False) -> dict[str, WaitReason]:
        """The reason of every endpoint that cannot start now; `anew`: by a new measure of the disk."""
        free = await self._measure_disk_mb(0.0 if anew else DISK_MEASUREMENT_MAX_AGE_S)
        placed = {name: self._place(kind, free) for name, kind in self._endpoints.items()}
        return {name: one.reason for name, one in placed.items() if isinstance(one, Unplaceable)}

    async def place(self, kind: LocalEndpoint, *, ahead: bool = False) -> Placed | Unplaceable:
        """The cards that a container of this kind would get now; `ahead`: one that is to wait for its job."""
        return self._place(kind, await self._measure_disk_mb(DISK_MEASUREMENT_MAX_AGE_S), ahead=ahead)

    def learn_from(self, execution: Execution) -> None:
        """Learn from an execution: without its image an endpoint is not asked for again for a while."""
        if isinstance(execution.verdict, ClassifiedFailure) and execution.verdict.code == "image_missing":
            until = anyio.current_time() + self._image_missing_s
            self._without_image[execution.assignment.job.endpoint] = until

    async def _measure_disk_mb(self, fresh_s: float) -> int:
        if anyio.current_time() - self._disk_measurement.at > fresh_s:
            self._disk_measurement = _DiskMeasurement(
                await anyio.to_thread.run_sync(free_disk_mb, self._jobs_dir), anyio.current_time()
            )
        return self._disk_measurement.mb

    def _place(self, kind: LocalEndpoint, free_mb: int, *, ahead: bool = False) -> Placed | Unplaceable:
        if self.is_paused:
            return Unplaceable(WaitReason.PAUSED, "the host is being put out")
        if self.engine_away is not None:
            return Unplaceable(WaitReason.ENGINE_AWAY, self.engine_away)
        if anyio.current_time() < self._without_image.get(kind.config.name, 0.0):
            return Unplaceable(WaitReason.IMAGE_MISSING, f"the engine has no image {kind.config.image}")
        return self._gpu_allocator.place(kind.config, free_mb, ahead=ahead)


def free_memory_mb() -> int:
    """MiB of the host's memory that could be used without swapping (MemAvailable of proc(5))."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) // 1024


def free_disk_mb(folder: Path) -> int:
    """MiB left on the disk of `folder`."""
    return shutil.disk_usage(folder).free // MIB


MIB = 1 << 20
