"""What the nets run on, and how many pieces of work at once."""

import os
from pathlib import Path

import torch

from lipsync.worker_pool import WorkerPool

_MOST = 8  # lanes: decoding and encoding do not keep up with more


def choose() -> tuple[torch.device, WorkerPool]:
    """CUDA where there is a card, else the CPU with a lane for each core that this container may use."""
    if torch.cuda.is_available():
        return torch.device("cuda"), WorkerPool(1)
    torch.set_num_threads(1)
    return torch.device("cpu"), WorkerPool(min(_MOST, _cores()))


def _cores() -> int:
    """By affinity and by the container's quota; the machine may have many more."""
    cores = len(os.sched_getaffinity(0))
    limit = Path("/sys/fs/cgroup/cpu.max")
    if limit.exists():
        quota, period = limit.read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores
