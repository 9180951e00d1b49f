"""The parts that take time to load and do not depend on the job. A warm worker loads them before its job arrives."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from lipsync.worker_pool import WorkerPool

from .tracker import FaceModels
from .voice import WEIGHTS, MouthNet, load_net

_LANES_LIMIT = 8  # lanes (threads): decoding and encoding do not keep up with more


@dataclass(frozen=True)
class PreviewEngine:
    """The loaded nets, the device that they run on, and the threads that use them."""

    device: torch.device
    lanes: WorkerPool
    faces: FaceModels
    mouth: MouthNet


def load() -> PreviewEngine:
    """Load the nets, onto the GPU if there is one."""
    chosen, lanes = _choose_device()
    return PreviewEngine(chosen, lanes, FaceModels.load(chosen), load_net(WEIGHTS, chosen))


def _choose_device() -> tuple[torch.device, WorkerPool]:
    """Return CUDA with one lane if there is a GPU; else the CPU with a lane for each core, at most _LANES_LIMIT."""
    if torch.cuda.is_available():
        return torch.device("cuda"), WorkerPool(1)
    torch.set_num_threads(1)
    return torch.device("cpu"), WorkerPool(min(_LANES_LIMIT, _cores()))


def _cores() -> int:
    """Return the cores that this container may use, by affinity and CPU quota; the machine may have many more."""
    cores = len(os.sched_getaffinity(0))
    limit = Path("/sys/fs/cgroup/cpu.max")
    if limit.exists():
        quota, period = limit.read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores
