"""The parts that take time to load and do not depend on the job. A warm worker loads them before its job arrives."""

from dataclasses import dataclass

import torch

from lipsync.worker_pool import WorkerPool

from . import device
from .tracker import FaceModels
from .voice import WEIGHTS, MouthNet, load_net


@dataclass(frozen=True)
class PreviewEngine:
    """The loaded nets, the device that they run on, and the threads that use them."""

    device: torch.device
    lanes: WorkerPool
    faces: FaceModels
    mouth: MouthNet


def load() -> PreviewEngine:
    """Load the nets, onto the card if there is one."""
    chosen, lanes = device.choose()
    return PreviewEngine(chosen, lanes, FaceModels.load(chosen), load_net(WEIGHTS, chosen))
