"""Rotated squares of a frame, and the crops that show a face upright to a net."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Regions:
    """N squares in frame pixels: `middle` N, 2; `side` N; `turn` N, radians clockwise in the image."""

    middle: torch.Tensor
    side: torch.Tensor
    turn: torch.Tensor

    @classmethod
    def of(cls, rows: torch.Tensor) -> "Regions":
        """Return the regions of N rows of x, y, side and turn, N, 4."""
        return cls(rows[:, :2], rows[:, 2], rows[:, 3])

    @property
    def rows(self) -> torch.Tensor:
        return torch.cat([self.middle, self.side[:, None], self.turn[:, None]], 1)

    def out_of(self, points: torch.Tensor, size: int) -> torch.Tensor:
        """Convert pixels N, K, 2 of a size x size crop to frame pixels."""
        centred = (points - size / 2) * (self.side / size)[:, None, None]
        return centred @ _turning(self.turn).transpose(1, 2) + self.middle[:, None]


def crop(frames: torch.Tensor, regions: Regions, size: int) -> torch.Tensor:
    """Return the crops, N, 3, size, size, of frames N, 3, H, W. Places outside the frame are black."""
    axis = torch.arange(size, device=frames.device) + 0.5
    ys, xs = torch.meshgrid(axis, axis, indexing="ij")
    pixels = torch.stack([xs, ys], -1).reshape(1, -1, 2).expand(len(frames), -1, -1)
    extent = torch.tensor([frames.shape[3], frames.shape[2]], device=frames.device)
    where = regions.out_of(pixels, size) / extent * 2 - 1
    return F.grid_sample(frames, where.reshape(-1, size, size, 2), align_corners=False, padding_mode="zeros")


def around(points: torch.Tensor, left_eye: torch.Tensor, right_eye: torch.Tensor, margin: float) -> Regions:
    """Return squares around each frame's points (N, K, 2), aligned with the eyes, `margin` times as large as needed."""
    along = right_eye - left_eye
    turn = torch.atan2(along[:, 1], along[:, 0])
    upright = points @ _turning(turn)
    low, high = upright.amin(1), upright.amax(1)
    middle = (_turning(turn) @ ((low + high) / 2)[..., None])[..., 0]
    return Regions(middle, (high - low).amax(-1) * margin, turn)


def _turning(turn: torch.Tensor) -> torch.Tensor:
    cos, sin = torch.cos(turn), torch.sin(turn)
    return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], 1)
