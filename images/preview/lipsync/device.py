"""Choose the device that the nets run on, and the number of pieces of work at once."""

import os
from pathlib import Path

import torch

from lipsync.worker_pool import WorkerPool

_MOST = 8  # lanes (threads): decoding and encoding do not keep up with more


def choose() -> tuple[torch.device, WorkerPool]:
    """Return CUDA with one lane if there is a card; else the CPU with a lane for each core, at most _MOST."""
    if torch.cuda.is_available():
        return torch.device("cuda"), WorkerPool(1)
    torch.set_num_threads(1)
    return torch.device("cpu"), WorkerPool(min(_MOST, _cores()))


def _cores() -> int:
    """Return the cores that this container may use, by affinity and CPU quota; the machine may have many more."""
    cores = len(os.sched_getaffinity(0))
    limit = Path("/sys/fs/cgroup/cpu.max")
    if limit.exists():
        quota, period = limit.read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores
