"""Mouth coordinates in a picture (x along the lips, y down, in mouth widths), and the edges of the lips in them."""

from dataclasses import dataclass

import torch

from .landmarks import LEFT_CORNER, LOWER_INNER, RIGHT_CORNER, UPPER_INNER

_STEPS = 256  # entries of the table that `LipEdge.at` reads


@dataclass(frozen=True)
class Axes:
    """Mouth coordinates of N frames. `middle`: N, 2 pixels; `along`: N, 2, unit vectors; `unit`: N, mouth width."""

    middle: torch.Tensor
    along: torch.Tensor
    unit: torch.Tensor

    @classmethod
    def of(cls, points: torch.Tensor, unit: torch.Tensor) -> "Axes":
        """Return the axes through the mouth's corners, from the landmarks N, K, 2."""
        left, right = points[:, LEFT_CORNER], points[:, RIGHT_CORNER]
        return cls((left + right) / 2, _normal(right - left), unit)

    def local(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Convert pixel coordinates, N, ... each, to mouth coordinates."""
        more = (slice(None),) + (None,) * (x.dim() - 1)
        cos, sin, unit = self.along[:, 0][more], self.along[:, 1][more], self.unit[more]
        dx, dy = x - self.middle[:, 0][more], y - self.middle[:, 1][more]
        return (dx * cos + dy * sin) / unit, (dy * cos - dx * sin) / unit


@dataclass(frozen=True)
class LipEdge:
    """The inner edge of a lip in N frames: M points each, with rising x."""

    x: torch.Tensor
    y: torch.Tensor

    def at(self, x: torch.Tensor) -> torch.Tensor:
        """Return y at x (N, ...): linear between the points, constant beyond them.

        A table is faster than an interpolation for each x, because x has many pixels.
        """
        low, high = self.x[:, :1], self.x[:, -1:]
        span = (high - low).clamp(min=1e-4)
        steps = low + span * torch.linspace(0, 1, _STEPS, device=x.device)
        after = torch.searchsorted(self.x.contiguous(), steps).clamp(1, self.x.shape[1] - 1)
        x0, x1 = self.x.gather(1, after - 1), self.x.gather(1, after)
        y0, y1 = self.y.gather(1, after - 1), self.y.gather(1, after)
        table = y0 + (y1 - y0) * ((steps - x0) / (x1 - x0).clamp(min=1e-4)).clamp(0, 1)
        flat = x.flatten(1)
        nearest = ((flat - low) * ((_STEPS - 1) / span)).round().clamp(0, _STEPS - 1).long()
        return table.gather(1, nearest).reshape(x.shape)


@dataclass(frozen=True)
class Lips:
    """The inner edges of both lips in mouth coordinates, and the corners' x (N each)."""

    upper: LipEdge
    lower: LipEdge

    @classmethod
    def of(cls, points: torch.Tensor, axes: Axes) -> "Lips":
        """Return the inner edges of both lips, from the landmarks N, K, 2 in pixels."""
        upper, lower = (
            LipEdge(*_rising(*axes.local(*points[:, row].unbind(-1)))) for row in (UPPER_INNER, LOWER_INNER)
        )
        return cls(upper, lower)

    @property
    def corners(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.upper.x[:, 0], self.upper.x[:, -1]


def _rising(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sort points by x, as the table needs. On a head turned far to the side, landmarks can fold over each other."""
    order = x.argsort(1)
    return x.gather(1, order), y.gather(1, order)


def _normal(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-6)
