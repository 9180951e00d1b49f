"""What takes time to load and no job to know."""

from dataclasses import dataclass

import torch

from . import device
from .lanes import Lanes
from .tracker import FaceModels
from .voice import WEIGHTS, MouthNet, load_net


@dataclass(frozen=True)
class Engine:
    """The nets, where they run, and the threads that use them."""

    device: torch.device
    lanes: Lanes
    faces: FaceModels
    mouth: MouthNet


def load() -> Engine:
    """On the card where there is one."""
    chosen, lanes = device.choose()
    return Engine(chosen, lanes, FaceModels.load(chosen), load_net(WEIGHTS, chosen))
