"""A person's own teeth, cut from the frame with the widest open mouth and drawn fixed to the skull."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .landmarks import FACE_SKIN, LEFT_CORNER, LOWER_MIDDLE, RIGHT_CORNER, UPPER_MIDDLE
from .lips import Axes, Lips
from .pose import Face, Pose

MIN_OPENNESS = 0.07
"""Of the frame that is cut from: below it there is nothing to see."""
_ROWS, _COLUMNS = 96, 160
_WIDTH, _ABOVE, _BELOW = 1.25, 0.30, 0.45  # size of the cut, in mouth widths around the middle of the lips at rest
_TEETH_SHARE, _AS_BRIGHT = 0.6, 0.75  # teeth show if two fifths of the inside are nearly as bright as the skin
_INSET, _SOFT = 0.025, 0.03  # places closer to the lip's edge than the inset count as lip; then a soft transition


@dataclass(frozen=True)
class Teeth:
    """The cut picture. `pixels`: 4, rows, columns: Y'CbCr, and the certainty 0..1 that it is the mouth's inside."""

    pixels: torch.Tensor

    @classmethod
    def seen(cls, yuv: torch.Tensor, points: torch.Tensor, face: Face) -> "Teeth | None":
        """Cut the teeth from one frame, 3, H, W, with its landmarks K, 3 in frame pixels. None if it shows no teeth."""
        place = skull_axes(face, face.pose(points[None]))
        device = yuv.device
        xs = ((torch.arange(_COLUMNS, device=device) + 0.5) / _COLUMNS - 0.5) * _WIDTH
        ys = (torch.arange(_ROWS, device=device) + 0.5) / _ROWS * (_ABOVE + _BELOW) - _ABOVE
        x, y = torch.meshgrid(xs, ys, indexing="xy")
        across = torch.stack([-place.along[:, 1], place.along[:, 0]], -1)
        spot = place.middle[0] + (x[..., None] * place.along[0] + y[..., None] * across[0]) * place.unit[0]
        extent = torch.tensor([yuv.shape[2], yuv.shape[1]], device=device)
        colours = F.grid_sample(yuv[None], (spot / extent * 2 - 1)[None], align_corners=False)[0]
        lips = Lips.of(points[None, :, :2], place)
        left, right = lips.corners
        upper, lower = lips.upper.at(x[None])[0], lips.lower.at(x[None])[0]
        depths = ((y - upper - _INSET) / _SOFT, (lower - _INSET - y) / _SOFT)
        ends = ((x - left) / (1.5 * _SOFT), (right - x) / (1.5 * _SOFT))
        sure = torch.stack([edge.clamp(0, 1) for edge in (*depths, *ends)]).prod(0)
        skin = _luma(yuv, points[FACE_SKIN, :2]).mean()
        within = colours[0][sure > 0.5]
        if not len(within) or within.quantile(_TEETH_SHARE) < _AS_BRIGHT * skin:
            return None
        return cls(torch.cat([colours, sure[None]]))

    def shown(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return colours N, 3, H, W and certainty N, 1, H, W at x and y in skull axes (N, H, W each)."""
        where = torch.stack([2 * x / _WIDTH, 2 * (y + _ABOVE) / (_ABOVE + _BELOW) - 1], -1)
        patch = F.grid_sample(self.pixels.expand(len(x), -1, -1, -1), where, align_corners=False)
        return patch[:, :3], patch[:, 3:]


def _luma(yuv: torch.Tensor, spots: torch.Tensor) -> torch.Tensor:
    """Return the luma of one frame, 3, H, W, at K positions, K, 2 in pixels."""
    extent = torch.tensor([yuv.shape[2], yuv.shape[1]], device=yuv.device)
    return F.grid_sample(yuv[None, :1], (spots / extent * 2 - 1)[None, None], align_corners=False)[0, 0, 0]


def skull_axes(face: Face, pose: Pose) -> Axes:
    """Return mouth coordinates that follow the skull, not the lips and the jaw. Origin: middle of the lips at rest."""
    corners = face.rest[[LEFT_CORNER, RIGHT_CORNER, UPPER_MIDDLE, LOWER_MIDDLE]].mean(0)
    middle = pose.onto_frame(corners.expand(len(pose.scale), 1, 3))[:, 0, :2]
    along = pose.rotation[:, :2, 0]
    along = along / along.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    return Axes(middle, along, pose.scale * face.unit)
