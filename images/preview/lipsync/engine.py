"""What takes time to load and no job to know."""

from dataclasses import dataclass

import torch

from lipsync.worker_pool import WorkerPool

from . import device
from .tracker import FaceModels
from .voice import WEIGHTS, MouthNet, load_net


@dataclass(frozen=True)
class PreviewEngine:
    """The nets, where they run, and the threads that use them."""

    device: torch.device
    lanes: WorkerPool
    faces: FaceModels
    mouth: MouthNet


def load() -> PreviewEngine:
    """On the card where there is one."""
    chosen, lanes = device.choose()
    return PreviewEngine(chosen, lanes, FaceModels.load(chosen), load_net(WEIGHTS, chosen))
