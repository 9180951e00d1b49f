"""Compute the five curves that shape a mouth from speech: the net, and its output at the video's frame rate."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from torch import nn

from .features import BANDS, FRAMES_PER_S, Features

CURVES = ("jaw", "wide", "round", "shut", "tuck")
"""Each 0..1: jaw dropped, corners drawn apart, lips rounded, lips pressed (m b p), lower lip under the teeth (f v)."""
WEIGHTS = Path(__file__).with_name("mouth.pt")
_MUTE_DBFS, _FULL_DBFS = -60.0, -48.0  # below the first the mouth stays shut, above the second the curves are full
_STRIDE, _CONTEXT = 6000, 32  # mel frames per pass, and around it; the net sees 22 frames on either side
_JAW_PEAK, _JAW_BOOST = 0.85, 1.8  # a mumbling speaker still opens the mouth: boost the 95th percentile to the peak


class MouthNet(nn.Module):
    """Residual dilated convolutions over time. N, T, BANDS -> N, T, CURVES; 96,005 parameters."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.enter = _layer(BANDS, width, 1)
        self.body = nn.ModuleList(_layer(width, width, dilation) for dilation in (1, 2, 3, 4))
        self.leave = nn.Conv1d(width, len(CURVES), 1)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        x = self.enter(mel.transpose(1, 2))
        for block in self.body:
            x = x + block(x)
        return torch.sigmoid(self.leave(x)).transpose(1, 2)


def _layer(inputs: int, outputs: int, dilation: int) -> nn.Sequential:
    conv = nn.Conv1d(inputs, outputs, 5, padding=2 * dilation, dilation=dilation)
    return nn.Sequential(conv, nn.BatchNorm1d(outputs), nn.GELU())


def load_net(path: Path, device: torch.device) -> MouthNet:
    """Load the trained net. The file holds a state dict in half precision, written by train/train.py."""
    state = torch.load(path, map_location=device, weights_only=True)
    net = MouthNet()
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    net.to(device).eval()
    return net


def curves(net: MouthNet, heard: Features, fps: float, frames: int) -> torch.Tensor:
    """Return the five curves at the middle of each video frame: frames, 5."""
    with torch.inference_mode():
        mel = heard.normalised()
        if not len(mel):
            return torch.zeros(frames, len(CURVES), device=mel.device)
        spoken = torch.cat(list(_passes(net, mel)))
        audible = ((heard.dbfs - _MUTE_DBFS) / (_FULL_DBFS - _MUTE_DBFS)).clamp(0, 1)
        shown = resample(spoken * audible[:, None], fps, frames).clone()
        shown[:, 0] *= _boost(shown[:, 0])
    return shown.clone()


def _passes(net: MouthNet, mel: torch.Tensor) -> Iterator[torch.Tensor]:
    for start in range(0, len(mel), _STRIDE):
        first = max(0, start - _CONTEXT)
        seen = mel[first : start + _STRIDE + _CONTEXT]
        yield cast("torch.Tensor", net(seen[None])[0, start - first :][:_STRIDE])


def resample(values: torch.Tensor, fps: float, frames: int) -> torch.Tensor:
    """Resample T, C at 100 Hz to frames, C. The average is triangular, one video frame to either side of the middle."""
    reach = FRAMES_PER_S / fps
    middle = (torch.arange(frames, device=values.device) + 0.5) * reach
    offsets = torch.arange(-math.ceil(reach), math.ceil(reach) + 1, device=values.device)
    at = middle.round().long()[:, None] + offsets
    weight = (1 - (at - middle[:, None]).abs() / reach).clamp(min=0) * (at >= 0) * (at < len(values))
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1e-6)
    return (values[at.clamp(0, len(values) - 1)] * weight[..., None]).sum(1)


def _boost(jaw: torch.Tensor) -> float:
    talking = jaw[jaw > 0.1]
    if not len(talking):
        return 1.0
    usual = float(talking.sort().values[int(len(talking) * 0.95)])
    return min(max(_JAW_PEAK / usual, 1.0), _JAW_BOOST)
